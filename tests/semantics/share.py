# SPDX-License-Identifier: Apache-2.0
"""A directory under test, on the bare host or in a share that `vfsd mount` has mounted."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Final

from .syscalls import clear_flags

HANG: Final = 300.0  # as in tests/waiting.py, which a guest that runs these rules does not have
PROGRAM: Final = str(Path(sys.executable).parent / "vfsd")
MEMORY: Final = "/dev/shm"
# Workers do not have these capabilities by default: SYS_ADMIN for trusted.* attributes, and
# LINUX_IMMUTABLE for chattr +i and +a.
ALL_FEATURES: Final = (
    "-o",
    "xattr,posix_acl,flock,posix_lock,modcaps=+sys_admin:+linux_immutable",
)


@dataclass(frozen=True)
class Setup:
    """How a place is served. A place with 0 queues is the bare host."""

    name: str
    queues: int = 0
    options: tuple[str, ...] = ()
    in_memory: bool = False  # on a tmpfs, which is faster for many small cases


HOST: Final = Setup("host")


@dataclass(frozen=True)
class Folder:
    """A new directory: its path in the place under test, and its path on the host."""

    path: Path
    host: Path


@dataclass(frozen=True)
class Place:
    """A directory in which cases run."""

    setup: Setup
    path: Path
    host: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def new_folder(self) -> Folder:
        name = f"case{next(self._numbers)}"
        folder = Folder(self.path / name, self.host / name)
        folder.path.mkdir()
        folder.path.chmod(0o777)
        return folder


@contextmanager
def place(setup: Setup) -> Iterator[Place]:
    """A new place, which exists until the end of the context."""
    where = MEMORY if setup.in_memory else None
    base = Path(tempfile.mkdtemp(prefix="vfsd-posix-", dir=where))
    try:
        base.chmod(0o755)
        source = base / "source"
        source.mkdir()
        mountpoint = base / "mount"
        mountpoint.mkdir()
        mounted = (
            _mounted(setup, source, mountpoint, base / "log")
            if setup.queues
            else (_bound(source, mountpoint))
        )
        with mounted:
            yield Place(setup, mountpoint, source)
    finally:
        _remove(base)


def _remove(base: Path) -> None:
    """Remove the files that cases left, also immutable ones."""

    def again(_call: object, path: str, _error: object) -> None:
        for stubborn in (path, str(Path(path).parent)):
            with suppress(OSError):
                clear_flags(stubborn)
        with suppress(OSError):
            os.rmdir(path) if Path(path).is_dir() else os.unlink(path)

    rmtree(base / "source", onerror=again)
    rmtree(base, onerror=again)


@contextmanager
def _bound(source: Path, mountpoint: Path) -> Iterator[None]:
    """Mount a directory of the host with the flags of a FUSE mount."""
    subprocess.run(["mount", "--bind", source, mountpoint], check=True)
    try:
        flags = "remount,bind,nosuid,nodev"
        subprocess.run(["mount", "-o", flags, mountpoint], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=True)


@contextmanager
def _mounted(setup: Setup, source: Path, mountpoint: Path, log: Path) -> Iterator[None]:
    argv = [PROGRAM, "mount", "--source", str(source), str(mountpoint)]
    argv += ["--queues", str(setup.queues), "--", *setup.options]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _wait_mounted(process, log)
        yield
        assert process.poll() is None, f"the mount ended by itself:\n{log.read_text()}"
    finally:
        _unmount(process, mountpoint)


def _wait_mounted(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + HANG
    while "\nmounted " not in "\n" + log.read_text():
        assert process.poll() is None, f"the mount did not start:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"not mounted yet:\n{log.read_text()}"
        time.sleep(0.02)


def _unmount(process: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """Unmount. If umount(8) hangs, end `vfsd mount`: its end aborts the FUSE connection."""
    try:
        if process.poll() is None:
            subprocess.run(["umount", str(mountpoint)], timeout=HANG, check=False)
        process.wait(HANG)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    subprocess.run(["umount", "-l", str(mountpoint)], stderr=subprocess.DEVNULL, check=False)
