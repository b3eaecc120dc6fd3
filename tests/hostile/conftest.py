# SPDX-License-Identifier: Apache-2.0
"""A daemon for each module, a connection for each test."""

import gc
import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import cannot_run, require
from tests.sandbox_modes import SandboxMode

from .daemon import Daemon
from .driver import Frontend, NoReplyError
from .fuse import ROOT, Guest

QUEUES = 4  # number of request queues of each connection
OPTIONS = ("--keep-listening", "-o", "xattr,flock,posix_lock")

_numbers = itertools.count(1)


class Folder(NamedTuple):
    """A new directory of the share: its nodeid for the guest, and its path on the host."""

    nodeid: int
    path: Path
    name: bytes

    def sub(self, guest: Guest, name: str, mode: int = 0o777, gid: int = 0) -> "Folder":
        """A new directory in this directory."""
        path = self.path / name
        path.mkdir()
        os.chown(path, 0, gid)
        path.chmod(mode)
        return Folder(guest.lookup(self.nodeid, name.encode()).nodeid, path, name.encode())


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves fds open. Its daemon may live on; Daemon.close() checks the
    processes."""
    if "frontend" in request.fixturenames:
        request.getfixturevalue("line").frontend()
    before = open_fds()
    yield
    gc.collect()
    left = {fd: what for fd, what in open_fds().items() if fd not in before}
    assert not left


def open_fds() -> dict[int, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found[int(path.name)] = str(path.readlink())
    return found


@pytest.fixture(scope="module", params=["prefer", "signed", "never"])
def handles(request: pytest.FixtureRequest) -> str:
    """--inode-file-handles of a module's daemon: the ways in which inodes are held."""
    mode: str = request.param
    return mode


@pytest.fixture(scope="module")
def daemon(sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    with Daemon(*OPTIONS, mode=sandbox_mode) as running:
        yield running


class Line:
    """A connection that serves one test after the other, as long as the connection is sound."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._frontend: Frontend | None = None
        self._mark = 0

    def frontend(self) -> Frontend:
        if self._frontend is None:
            self._frontend = Frontend(self.daemon.socket).setup(QUEUES)
            self._mark = self._frontend.memory.mark()
        return self._frontend

    def settle(self) -> None:
        """After a test: no request is under way; a connection on which that check fails is
        dropped."""
        if self._frontend is None:
            return
        try:
            for ring in self._frontend.rings.values():
                ring.reap()
                if ring.chains:
                    self._frontend.restart_ring(ring.index)
        except (NoReplyError, AssertionError, OSError):
            self.close()
        else:
            self._frontend.memory.reset(self._mark)

    def close(self) -> None:
        if self._frontend is not None:
            self._frontend.close()
            self._frontend = None


@pytest.fixture(scope="module")
def line(daemon: Daemon) -> Iterator[Line]:
    kept = Line(daemon)
    yield kept
    kept.close()


@pytest.fixture
def frontend(line: Line) -> Iterator[Frontend]:
    """A connection whose rings run. What earlier tests did on the connection is over, except for
    their session, which INIT ends."""
    yield line.frontend()
    line.settle()


@pytest.fixture
def guest(frontend: Frontend) -> Guest:
    """A guest that has done INIT."""
    guest = Guest(frontend)
    guest.init()
    return guest


@pytest.fixture
def folder(daemon: Daemon, guest: Guest) -> Folder:
    name = f"folder{next(_numbers)}".encode()
    path = daemon.share / name.decode()
    path.mkdir()
    path.chmod(0o777)
    daemon.give(path)
    return Folder(guest.lookup(ROOT, name).nodeid, path, name)


@pytest.fixture
def nobody_dies(daemon: Daemon, guest: Guest, folder: Folder) -> Iterator[None]:
    """Check after each test that the same processes live and that each queue serves a request."""
    before = daemon.pids()
    yield
    for queue in guest.frontend.rings:
        if queue:
            guest.lookup(ROOT, folder.name, queue=queue)
    assert daemon.pids().keys() == before.keys()


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """An overlayfs with file handles, and a file sub/x from its lower layer."""
    require("root")
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "sub").mkdir()
    (tmp_path / "lower" / "sub" / "x").write_bytes(b"old")
    layers = ",".join(f"{layer}dir={tmp_path / layer}" for layer in ("lower", "upper", "work"))
    merged = tmp_path / "merged"
    options = f"{layers},index=on,nfs_export=on"
    argv = ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        cannot_run(f"no overlayfs with handles here: {done.stderr.strip()}")
    yield merged
    subprocess.run(["umount", "-l", merged], check=True)
