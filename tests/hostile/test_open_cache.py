# SPDX-License-Identifier: Apache-2.0
"""A file that the guest opens for reading again and again is opened once (open_cache.h)."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import QUEUES, Folder
from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Guest, Op, expect
from .test_ops_files import F_WRLCK, expect_success, lock
from .test_syscalls import COUNT, per_op

OPEN_CACHE = 256  # files of one worker
O_PATH = 0o10000000
FSTAT = "newfstatat"  # as glibc >= 2.33 calls it


# By what holds the inode of a file: what opens the file.
OPENS = {"prefer": "open_by_handle_at", "signed": "openat", "never": "openat"}


@pytest.fixture(scope="module")
def daemon(handles: str) -> Iterator[Daemon]:
    with Daemon("--keep-listening", f"--inode-file-handles={handles}") as running:
        yield running


def open_often(guest: Guest, nodeid: int, times: int = 4) -> None:
    for _ in range(times):
        guest.release(nodeid, guest.open(nodeid, os.O_RDONLY))


def read_again(guest: Guest, nodeid: int) -> bytes:
    fh = guest.open(nodeid, os.O_RDONLY)
    data = guest.read(nodeid, fh, 0, 4096)
    guest.release(nodeid, fh)
    return data


def held_open(daemon: Daemon, folder: Path) -> list[Path]:
    """The files of a folder that the workers have open for reading or writing."""
    worker = daemon.the("worker", "queue 1")
    found = []
    for link in Path(f"/proc/{worker}/fd").iterdir():
        try:
            path, info = link.readlink(), (link.parents[1] / "fdinfo" / link.name).read_text()
        except FileNotFoundError:
            continue
        flags = int(info.split("flags:")[1].split()[0], 8)
        if path.parent.name == folder.name and not flags & O_PATH:
            found.append(path)
    return found


def wait_until_held(daemon: Daemon, handles: str, folder: Folder, count: int) -> None:
    """Wait until exactly `count` files of a folder are held. If handles hold the inodes, fewer
    files are also accepted: a file that is not used for a second is closed (inode_trim.c), and a
    loaded machine does not open `count` files within a second."""
    fewest = count if handles == "never" else 0
    wait_until(
        lambda: fewest <= len(held_open(daemon, folder.path)) <= count, 5, f"{count} are held"
    )


def test_the_fd_is_duplicated_from_the_third_opening_on(
    daemon: Daemon, handles: str, tmp_path: Path, guest: Guest, folder: Folder
) -> None:
    (folder.path / "x").touch()
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    fhs: list[int] = []

    def open_with(flags: int) -> dict[str, int]:
        action = lambda _: fhs.append(guest.open(nodeid, flags))  # noqa: E731
        return per_op(daemon, tmp_path, guest, folder, action)

    assert "fcntl" not in open_with(os.O_RDWR)
    open_often(guest, nodeid, 2)
    # The stat shows whether the guest may keep its pages (keep_cache.c).
    assert open_with(os.O_RDONLY) == {"fcntl": COUNT, FSTAT: COUNT}
    assert open_with(os.O_RDONLY | os.O_SYNC)[OPENS[handles]] == COUNT
    for fh in fhs:
        guest.release(nodeid, fh)


def test_a_file_opened_once_is_not_held(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    (folder.path / "x").touch()
    open_often(guest, guest.lookup(folder.nodeid, b"x").nodeid, 1)
    wait_until(lambda: not held_open(daemon, folder.path), 5, "the file is closed")


def test_what_is_read_is_what_was_written(guest: Guest, folder: Folder) -> None:
    (folder.path / "x").write_bytes(b"old")
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    open_often(guest, nodeid)
    fh = guest.open(nodeid, os.O_RDWR)
    guest.write(nodeid, fh, 0, b"new, and longer")
    assert read_again(guest, nodeid) == b"new, and longer"
    guest.release(nodeid, fh)
    (folder.path / "x").unlink()
    (folder.path / "x").write_bytes(b"another file")
    assert read_again(guest, nodeid) == b"new, and longer"
    assert read_again(guest, guest.lookup(folder.nodeid, b"x").nodeid) == b"another file"


def test_each_opening_ends_for_itself(guest: Guest, folder: Folder) -> None:
    (folder.path / "x").write_bytes(b"data")
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    open_often(guest, nodeid)
    fhs = [guest.open(nodeid, os.O_RDONLY, queue) for queue in (1, 2, 1, 2)]
    for left in range(len(fhs), 0, -1):
        assert guest.read(nodeid, fhs[0], 0, 4) == b"data", left
        guest.release(nodeid, fhs.pop(0))
    assert read_again(guest, nodeid) == b"data"


def test_few_files_are_held(daemon: Daemon, handles: str, guest: Guest, folder: Folder) -> None:
    for number in range(OPEN_CACHE + 100):
        (folder.path / f"{number}").touch()
        open_often(guest, guest.lookup(folder.nodeid, b"%d" % number).nodeid, 3)
    wait_until_held(daemon, handles, folder, OPEN_CACHE)
    forgotten = f"{OPEN_CACHE + 98}"
    guest.forget(guest.lookup(folder.nodeid, forgotten.encode()).nodeid, 2)
    wait_until(
        lambda: forgotten not in [path.name for path in held_open(daemon, folder.path)],
        5,
        "a file that the guest forgets is closed",
    )


def test_the_fd_outlives_its_worker(
    daemon: Daemon, handles: str, guest: Guest, folder: Folder
) -> None:
    (folder.path / "x").write_bytes(b"data")
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    open_often(guest, nodeid)
    for _ in range(3):
        worker = daemon.the("worker", "queue 1")
        os.kill(worker, 9)
        assert read_again(guest, nodeid) == b"data"
    wait_until_held(daemon, handles, folder, 1)


def test_what_is_opened_all_the_time_is_no_orphan(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """After a death the pool looks for fds that are in no table. It must not close these fds, whose
    numbers are used again and again for the same open file."""
    hot, other = (folder.path / name for name in ("hot", "other"))
    for path in (hot, other):
        path.write_bytes(path.name.encode())
    nodeids = [guest.lookup(folder.nodeid, path.name.encode()).nodeid for path in (hot, other)]
    for nodeid in nodeids:
        open_often(guest, nodeid)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        # A worker that starts does not have this title yet.
        for worker in daemon.titled("worker", "queue 1"):
            os.kill(worker, 9)
        for _ in range(300):
            one = guest.open(nodeids[0], os.O_RDONLY, 2)
            two = guest.open(nodeids[1], os.O_RDONLY, 3)
            assert guest.read(nodeids[0], one, 0, 16, queue=2) == b"hot"
            guest.release(nodeids[0], one, 2)
            assert guest.read(nodeids[1], two, 0, 16, queue=3) == b"other"
            guest.release(nodeids[1], two, 3)


def test_not_where_flocks_are_the_hosts() -> None:
    with (
        Daemon("-o", "flock", "--inode-file-handles=prefer") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        (daemon.share / "x").touch()
        guest = Guest(frontend.setup(QUEUES))
        guest.init()
        nodeid = guest.lookup(ROOT, b"x").nodeid
        open_often(guest, nodeid)
        one, two = (guest.open(nodeid, os.O_RDONLY) for _ in range(2))
        expect_success(lock(guest, Op.SETLK, nodeid, one, 1, F_WRLCK, flock=True))
        expect(errno.EAGAIN, lock(guest, Op.SETLK, nodeid, two, 2, F_WRLCK, flock=True))


def test_not_on_overlayfs(overlay: Path) -> None:
    """On overlayfs an fd that was opened before the first write may keep referring to the old
    file."""
    with (
        Daemon("--inode-file-handles=prefer", share=overlay) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init()
        nodeid = guest.lookup(guest.lookup(ROOT, b"sub").nodeid, b"x").nodeid
        open_often(guest, nodeid)
        wait_until(lambda: not held_open(daemon, overlay / "sub"), 5, "the file is closed")
        fh = guest.open(nodeid, os.O_RDWR)
        guest.write(nodeid, fh, 0, b"new")
        assert read_again(guest, nodeid) == b"new"
