# SPDX-License-Identifier: Apache-2.0
"""A file that the host deletes gives its space back, although the guest has it in its cache."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import require

from .daemon import Daemon, wait_until
from .driver import Frontend
from .file_systems import file_system
from .fuse import ROOT, Guest
from .test_idle import assert_asleep

BYTES = 16 << 20
OFTEN = 5  # after this number of openings the open cache has the file
WORKERS = 2


@pytest.fixture(scope="module", params=["ext4", "tmpfs"])
def share(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    require("root")
    with file_system(request.param, tmp_path_factory.mktemp("host")) as mounted:
        yield mounted


def used(path: Path) -> int:
    """Bytes in use on the file system."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def links(pid: int) -> Iterator[Path]:
    """The files that the fds of a process refer to."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the fd was closed just now
            yield link.readlink()


def fill(path: Path) -> None:
    path.write_bytes(b"x" * BYTES)
    os.sync()


@pytest.mark.parametrize("handles", ["prefer", "signed"])
def test_the_space_is_free_soon(handles: str, share: Path) -> None:
    with (
        Daemon(f"--workers={WORKERS}", f"--inode-file-handles={handles}", share=share) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(WORKERS))
        guest.init()
        before = used(share)
        nodeids = []
        for name, openings in (("asked", 0), ("opened", 1), ("opened often", OFTEN)):
            fill(share / name)
            nodeid = guest.lookup(ROOT, name.encode()).nodeid
            assert guest.getattr(nodeid).size == BYTES
            for _ in range(openings):
                fh = guest.open(nodeid, os.O_RDONLY)
                assert guest.read(nodeid, fh, BYTES - 4, 9) == b"xxxx"
                guest.release(nodeid, fh)
            nodeids.append(nodeid)
        held = guest.open(nodeids[0], os.O_RDONLY, 2)
        for path in share.glob("*ed*"):
            path.unlink()
        wait_until(lambda: used(share) < before + 2 * BYTES, 5, "a file that is not open is gone")
        assert guest.read(nodeids[0], held, 0, 2, queue=2) == b"xx"
        assert guest.getattr(nodeids[0]).nlink == 0
        guest.release(nodeids[0], held, 2)
        wait_until(lambda: used(share) < before + BYTES, 5, "the closed file is also gone")
        if handles == "signed":
            assert_asleep(daemon)


def test_what_lost_its_fd_is_opened_again(share: Path) -> None:
    with (
        Daemon("--inode-file-handles=prefer", share=share) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        (share / "file").touch()
        guest = Guest(frontend.setup(1))
        guest.init()
        nodeid = guest.lookup(ROOT, b"file").nodeid
        pool = daemon.the("pool")

        def is_held() -> bool:
            return any(path.name == "file" for path in links(pool))

        for _ in range(2):
            guest.getattr(nodeid)
            assert is_held()
            wait_until(lambda: not is_held(), 5, "the fd is given up")
