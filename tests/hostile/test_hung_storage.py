# SPDX-License-Identifier: Apache-2.0
"""A part of the share hangs: what waits for it is answered when it goes on, and rightly."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import READ_IN, RELEASE_IN, ROOT, Guest, Op, Pending
from .hung import HungMount

RETIRED_MAX = 4096  # RECLAIM_MAX of reclaim.h


@pytest.fixture
def share(tmp_path: Path) -> Iterator[HungMount]:
    """A directory, tmp_path/share, with a mount `mnt` in it that can hang."""
    require("root")
    require("/dev/fuse")
    (tmp_path / "share").mkdir()
    with HungMount(tmp_path / "share", tmp_path / "source") as mounted:
        yield mounted


def submit_read(guest: Guest, nodeid: int, fh: int, size: int = 4096, queue: int = 1) -> Pending:
    body = READ_IN.pack(fh, 0, size, 0, 0, 0, 0)
    return guest.submit(Op.READ, nodeid, body, room=size, queue=queue)


def test_a_flood_of_releases_closes_no_file_that_a_request_waits_for(
    share: HungMount, tmp_path: Path
) -> None:
    """One thread hangs in a read; a second read is queued behind it, and its file is released. Then
    so many files are released that the list of those that wait is full, and others are opened."""
    for name in ("first", "second"):
        (tmp_path / "source" / name).write_text(name)
    (tmp_path / "share" / "other").write_text("other")
    with (
        Daemon("--thread-pool-size=1", share=tmp_path / "share") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init()
        slow = guest.lookup(ROOT, b"mnt").nodeid
        first, second = (guest.lookup(slow, name).nodeid for name in (b"first", b"second"))
        first_fh, second_fh = guest.open(first, os.O_RDONLY), guest.open(second, os.O_RDONLY)
        other = guest.lookup(ROOT, b"other").nodeid
        others = [guest.open(other, os.O_RDONLY) for _ in range(RETIRED_MAX + 100)]
        with share.hanging():
            waiting = submit_read(guest, first, first_fh), submit_read(guest, second, second_fh)
            guest.release(second, second_fh)
            for fh in others:
                guest.call(Op.RELEASE, other, RELEASE_IN.pack(fh, 0, 0, 0))
            for _ in range(100):
                guest.open(other, os.O_RDONLY)
        assert [guest.finish(pending).data for pending in waiting] == [b"first", b"second"]


def test_a_worker_is_replaced_while_what_it_served_hangs(share: HungMount, tmp_path: Path) -> None:
    """The pool asks nobody about the files that are open: it buries the dead, fills its place, and
    goes on taking orders."""
    for number in range(10):
        (tmp_path / "source" / str(number)).touch()
    with (
        Daemon("--inode-file-handles=never", share=tmp_path / "share") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(2))
        guest.init()
        slow = guest.lookup(ROOT, b"mnt").nodeid
        for number in range(10):
            guest.open(guest.lookup(slow, b"%d" % number).nodeid, os.O_RDONLY)
        (victim,) = daemon.titled("worker", "queue 2")
        with share.hanging():
            os.kill(victim, signal.SIGKILL)
            wait_until(
                lambda: daemon.titled("worker", "queue 2") not in ([], [victim]), 5, "a new worker"
            )
            frontend.restart_ring(2)
            guest.getattr(ROOT)
        guest.lookup(slow, b"1", queue=2)
