# SPDX-License-Identifier: Apache-2.0
"""FOPEN_KEEP_CACHE: the guest keeps its pages of a file exactly if nothing has changed the file
(keep_cache.c). tests/coherence races changes against guests that open the files."""

import errno
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from .conftest import OPTIONS
from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import LINUX_FLAGS, OPEN_IN, OPEN_OUT, ROOT, WRITE_OUT, Guest, Op, write_in

KEEP_CACHE = 2
SETTLED_SECONDS = 11.5  # the clock of the last change, and of the test, may differ by a tick
READDIRPLUS_AUTO = 1 << 14
BEYOND = 1 << 62  # no file system has files that long
FILES = [f"file{number}" for number in range(8)]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(*OPTIONS) as running:
        for name in FILES:
            (running.share / name).write_bytes(bytes(8192))
        yield running


@pytest.fixture
def path(daemon: Daemon) -> Path:
    """A file that no other test has used, and that has not changed for a while."""
    found = daemon.share / FILES.pop()
    os.sync()
    wait_until_settled(found)
    return found


def wait_until_settled(path: Path) -> None:
    wait_until(lambda: time.time() - path.stat().st_ctime > SETTLED_SECONDS, 20, "it is settled")


def opened(guest: Guest, nodeid: int, flags: int = os.O_RDONLY, queue: int = 1) -> tuple[int, bool]:
    """Open a file. Returns its fh, and whether the guest may keep its pages."""
    data = guest.call(Op.OPEN, nodeid, OPEN_IN.pack(flags, 0), room=16, queue=queue)
    fh, open_flags, _ = OPEN_OUT.unpack(data)
    return fh, bool(open_flags & KEEP_CACHE)


def open_and_read(guest: Guest, nodeid: int, queue: int = 1) -> bool:
    fh, keeps = opened(guest, nodeid, queue=queue)
    guest.read(nodeid, fh, 0, 4096, queue=queue)
    guest.release(nodeid, fh, queue=queue)
    return keeps


def node(guest: Guest, path: Path) -> int:
    return guest.lookup(ROOT, path.name.encode()).nodeid


def test_pages_are_kept_from_the_second_open_on(guest: Guest, path: Path) -> None:
    nodeid = node(guest, path)
    assert [open_and_read(guest, nodeid, queue) for queue in (1, 2, 1)] == [False, True, True]
    fh, keeps = opened(guest, nodeid, os.O_RDWR)
    assert keeps
    guest.release(nodeid, fh)
    os.utime(path, ns=(0, 0))
    assert not open_and_read(guest, nodeid)


def test_pages_count_as_dropped_when_the_guest_has_read_through_that_open(
    guest: Guest, path: Path
) -> None:
    nodeid = node(guest, path)
    opens = [opened(guest, nodeid, queue=queue) for queue in (1, 2, 3)]
    assert not any(keeps for _, keeps in opens)
    guest.read(nodeid, opens[1][0], 0, 4096, queue=4)
    assert opened(guest, nodeid)[1]


def test_a_change_that_is_not_settled_keeps_nothing(guest: Guest, path: Path) -> None:
    nodeid = node(guest, path)
    path.write_bytes(b"new")
    assert [open_and_read(guest, nodeid) for _ in range(3)] == [False] * 3


def test_a_dirty_mapping_keeps_nothing(guest: Guest, path: Path) -> None:
    """A store into a page that is dirty already gives the file no new ctime."""
    nodeid = node(guest, path)
    fd = os.open(path, os.O_RDWR)
    with closing(mmap.mmap(fd, 8192)) as memory:
        os.close(fd)
        memory[0] = 1
        wait_until_settled(path)
        memory[0] = 2  # if the host has written the page back, the change is new now
        assert [open_and_read(guest, nodeid) for _ in range(3)] == [False] * 3


def test_a_write_that_fails_ends_it(guest: Guest, path: Path) -> None:
    nodeid = node(guest, path)
    assert [open_and_read(guest, nodeid) for _ in range(2)] == [False, True]
    fh, _ = opened(guest, nodeid, os.O_RDWR)
    body = write_in(fh=fh, offset=BEYOND, size=1) + b"x"
    assert guest.ask(Op.WRITE, nodeid, body, room=WRITE_OUT.size).error == errno.EFBIG
    assert [open_and_read(guest, nodeid) for _ in range(2)] == [False, False]


def test_a_new_session_begins_without(guest: Guest, path: Path) -> None:
    nodeid = node(guest, path)
    assert [open_and_read(guest, nodeid) for _ in range(2)] == [False, True]
    guest.init()
    assert not open_and_read(guest, node(guest, path))


def test_only_linux_keeps_pages(frontend: Frontend, path: Path) -> None:
    """Other guests may use a file before they have dropped the pages."""
    guest = Guest(frontend)
    guest.init(flags=LINUX_FLAGS & ~READDIRPLUS_AUTO)
    nodeid = node(guest, path)
    assert [open_and_read(guest, nodeid) for _ in range(3)] == [False] * 3
