# SPDX-License-Identifier: Apache-2.0
"""A part of the share hangs: a request that waits for it gets the right answer when it goes on."""

import errno
import os
import signal
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.conftest import require
from tests.sandbox_modes import SandboxMode, in_each_mode

from .daemon import Daemon, wait_until
from .driver import SET_MEM_TABLE, Frontend, Region, Segment
from .fuse import (
    FSYNC_IN,
    IN_HEADER,
    MKDIR_IN,
    OPEN_IN,
    RELEASE_IN,
    ROOT,
    Guest,
    Op,
    Pending,
    names,
    parse_dirents,
    read_in,
)
from .hung import HungMount, waits_for_a_server

RETIRED_MAX = 4096  # RECLAIM_MAX of reclaim.h
CLOSING_WAIT = 0.5  # seconds: CLOSING_WAIT_MS of inode_fd.c


@pytest.fixture
def share(tmp_path: Path) -> Iterator[HungMount]:
    """A directory, tmp_path/share, with a mount `mnt` in it that can hang."""
    require("root")
    require("/dev/fuse")
    (tmp_path / "share").mkdir()
    with HungMount(tmp_path / "share", tmp_path / "source") as mounted:
        yield mounted


def submit_read(guest: Guest, nodeid: int, fh: int, size: int = 4096, queue: int = 1) -> Pending:
    body = read_in(fh=fh, size=size)
    return guest.submit(Op.READ, nodeid, body, room=size, queue=queue)


def test_a_flood_of_releases_closes_no_file_that_a_request_waits_for(
    share: HungMount, tmp_path: Path
) -> None:
    """One thread hangs in a read; a second read is queued behind it, and its file is released. Then
    enough files are released to fill the list of files that wait to be closed, and others are
    opened."""
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


@in_each_mode
def test_a_worker_is_replaced_while_what_it_served_hangs(
    share: HungMount, sandbox_mode: SandboxMode, tmp_path: Path
) -> None:
    """The pool asks no file system about the open files when it replaces a worker: it reaps the
    dead worker, starts another worker, and goes on taking orders."""
    for number in range(10):
        (tmp_path / "source" / str(number)).touch()
    with (
        Daemon("--inode-file-handles=never", share=tmp_path / "share", mode=sandbox_mode) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(2))
        guest.init()
        slow = guest.lookup(ROOT, b"mnt").nodeid
        for number in range(10):
            guest.open(guest.lookup(slow, b"%d" % number).nodeid, os.O_RDONLY)
        victim = daemon.the("worker", "queue 2")
        with share.hanging():
            os.kill(victim, signal.SIGKILL)
            wait_until(
                lambda: daemon.titled("worker", "queue 2") not in ([], [victim]), 5, "a new worker"
            )
            frontend.restart_ring(2)
            guest.getattr(ROOT)
        guest.lookup(slow, b"1", queue=2)


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def end_workers(daemon: Daemon, number: signal.Signals, times: int) -> None:
    """End the worker of queue 2 again and again, each time in the middle of a request."""
    for _ in range(times):
        victim = daemon.the("worker", "queue 2")
        wait_until(partial(waits_for_a_server, victim), 5, "a request is under way")
        os.kill(victim, number)
        wait_until(partial(has_ended, victim), 5, "the worker's death")


def test_a_request_that_is_under_way_at_many_kills_is_done_once(
    share: HungMount, tmp_path: Path
) -> None:
    with (
        Daemon("--inode-file-handles=never", share=tmp_path / "share") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(2))
        guest.init()
        slow = guest.lookup(ROOT, b"mnt").nodeid
        body = MKDIR_IN.pack(0o755, 0) + names(b"made")
        with share.hanging():
            waiting = guest.submit(Op.MKDIR, slow, body, room=128, queue=2)
            end_workers(daemon, signal.SIGKILL, 4)
        assert guest.finish(waiting).error == 0
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["made"]


def test_a_request_that_is_under_way_at_two_faults_gets_eio(
    share: HungMount, tmp_path: Path
) -> None:
    """A thread waits for the file system; the main thread takes the signal."""
    (tmp_path / "source" / "file").touch()
    with (
        Daemon("--inode-file-handles=never", share=tmp_path / "share") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(2))
        guest.init()
        slow = guest.lookup(guest.lookup(ROOT, b"mnt").nodeid, b"file").nodeid
        body = FSYNC_IN.pack(guest.open(slow, os.O_RDWR), 0, 0)
        with share.hanging():
            waiting = guest.submit(Op.FSYNC, slow, body, queue=2)
            end_workers(daemon, signal.SIGABRT, 2)
            assert guest.finish(waiting).error == errno.EIO


# There is no fd left, as each close hangs.

LIMIT = 512  # limit of open files of the daemon
GONE = 160
KNOWN = 20


@pytest.fixture
def flushing(share: HungMount, tmp_path: Path) -> Iterator[HungMount]:
    """A directory, tmp_path/other, with a mount `mnt` in it whose server is asked at each close(2):
    the mount's files are on `share`, which is not a local file system."""
    (tmp_path / "other").mkdir()
    with HungMount(tmp_path / "other", share.path / "source") as mounted:
        yield mounted


def test_while_closing_hangs_not_every_request_waits_for_an_fd(
    flushing: HungMount, tmp_path: Path
) -> None:
    """Each thread that closes takes several fds, and hangs with the first of them."""
    for i in range(GONE):
        (flushing.path / str(i)).touch()
    for i in range(KNOWN):
        (tmp_path / "other" / str(i)).touch()
    options = (f"--rlimit-nofile={LIMIT}", "--inode-file-handles=prefer")
    with (
        Daemon(*options, share=tmp_path / "other") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init()
        known = [guest.lookup(ROOT, b"%d" % i).nodeid for i in range(KNOWN)]
        slow = guest.lookup(ROOT, b"mnt").nodeid
        nodeids = [guest.lookup(slow, b"%d" % i).nodeid for i in range(GONE)]
        opened = [(nodeid, guest.open(nodeid)) for nodeid in nodeids]
        with flushing.hanging():
            for nodeid, fh in opened:
                guest.release(nodeid, fh)
            use_up_fds(guest)
            before = time.monotonic()
            errors = {error_of_getattr(guest, nodeid) for nodeid in known}
            seconds = time.monotonic() - before
        assert errors == {errno.ENFILE}
        assert seconds < KNOWN * CLOSING_WAIT / 2
        wait_until(lambda: error_of_getattr(guest, known[-1]) == 0, 10, "fds are closed")


def use_up_fds(guest: Guest) -> None:
    body = OPEN_IN.pack(os.O_RDONLY | os.O_DIRECTORY, 0)
    while not (error := guest.ask(Op.OPENDIR, ROOT, body, room=16).error):
        pass
    assert error == errno.ENFILE


def error_of_getattr(guest: Guest, nodeid: int) -> int:
    return guest.ask(Op.GETATTR, nodeid, bytes(16), room=104).error


# A request hangs while the guest's memory changes.

SIZE = 64 << 10  # the length of a read


class ReadInto:
    """A read that hangs, of a file full of "x", into the second of the guest's two regions; the
    rings and the request are in the first region."""

    def __init__(
        self, daemon: Daemon, frontend: Frontend, share: HungMount, tmp_path: Path
    ) -> None:
        (tmp_path / "source" / "file").write_bytes(b"x" * SIZE)
        self.memory = frontend.memory
        self.guest = guest = Guest(frontend.setup(1))
        guest.init()
        slow = guest.lookup(ROOT, share.path.name.encode()).nodeid
        nodeid = guest.lookup(slow, b"file").nodeid
        fh = guest.open(nodeid, os.O_RDONLY)
        _, self.second = self.memory.regions
        # Across the middle of the second region.
        self.buffer = self.second.gpa + (self.second.size // 2) - SIZE // 2
        body = read_in(fh=fh, size=SIZE)
        header = IN_HEADER.pack(
            IN_HEADER.size + len(body), Op.READ, 4711, nodeid, 0, 0, os.getpid(), 0, 0
        )
        request = self.memory.alloc(len(header + body))
        self.memory.write(request, header + body)
        self.reply = self.memory.alloc(16)
        self._request = Segment(request, len(header + body))
        self._ring = frontend.rings[1]
        self._worker = daemon.the("worker 0")

    def submit(self) -> int:
        """Send the read. Return: the head of the chain, once the worker waits for the file
        system."""
        head = self._ring.submit(
            [self._request, Segment(self.reply, 16, True), Segment(self.buffer, SIZE, True)]
        )
        self._ring.publish()
        self._ring.kick()
        wait_until(self.waits, 10, "the read waits")
        return head

    def waits(self) -> bool:
        return waits_for_a_server(self._worker)

    def error(self) -> int:
        return -int.from_bytes(self.memory.read(self.reply + 4, 4), "little", signed=True)

    def data(self) -> bytes:
        return self.memory.read(self.buffer, SIZE)


@pytest.fixture
def hung_read(share: HungMount, sandbox_mode: SandboxMode, tmp_path: Path) -> Iterator[ReadInto]:
    with (
        Daemon("--cache=never", share=tmp_path / "share", mode=sandbox_mode) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        yield ReadInto(daemon, frontend, share, tmp_path)


@in_each_mode
def test_memory_that_was_taken_back_stays_as_it_is(hung_read: ReadInto, share: HungMount) -> None:
    """The request that hangs is answered before the acknowledgement, and what the call reads later
    reaches no guest memory."""
    frontend = hung_read.guest.frontend
    with share.hanging():
        head = hung_read.submit()
        frontend.set_memory(frontend.memory.regions[:1])
        assert frontend.rings[1].wait(head) == 16
        assert hung_read.error() == errno.EIO
    hung_read.guest.getattr(ROOT)
    wait_until(lambda: not hung_read.waits(), 10, "the read ends")
    assert hung_read.data() == bytes(SIZE)


def test_a_request_goes_on_when_its_memory_is_split_into_regions(
    hung_read: ReadInto, share: HungMount
) -> None:
    """As QEMU does when a device is plugged in: each address keeps its memory, so the daemon waits
    for no request and gives no request up."""
    frontend, second = hung_read.guest.frontend, hung_read.second
    half = second.size // 2
    pieces = [
        Region(second.gpa + at, half, second.uva + at, second.offset + at) for at in (0, half)
    ]
    with share.hanging():
        head = hung_read.submit()
        frontend.set_memory([frontend.memory.regions[0], *pieces])
        assert hung_read.data() == bytes(SIZE)
    assert frontend.rings[1].wait(head) == 16 + SIZE
    assert hung_read.error() == 0
    assert hung_read.data() == b"x" * SIZE


def test_a_directory_that_two_queues_read_costs_no_cpu_while_it_hangs(
    share: HungMount, tmp_path: Path
) -> None:
    with (
        Daemon("--cache=never", share=tmp_path / "share") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        (tmp_path / "source" / "file").touch()
        guest = Guest(frontend.setup(2))
        guest.init()
        slow = guest.lookup(ROOT, b"mnt").nodeid
        fh = guest.open(slow, os.O_RDONLY | os.O_DIRECTORY, op=Op.OPENDIR)
        workers = [psutil.Process(daemon.the("worker", f"queue {i}")) for i in (1, 2)]
        body = read_in(fh=fh, size=4096)
        with share.hanging():
            waiting = [
                guest.submit(Op.READDIR, slow, body, room=4096, queue=queue) for queue in (1, 2)
            ]
            wait_until(
                lambda: any(waits_for_a_server(w.pid) for w in workers), 10, "a worker waits"
            )
            before = [sum(worker.cpu_times()[:2]) for worker in workers]
            time.sleep(2)
            spent = [sum(worker.cpu_times()[:2]) for worker in workers]
            assert max(b - a for a, b in zip(before, spent, strict=True)) < 0.2
        for pending in waiting:
            found = {entry.name for entry in parse_dirents(guest.finish(pending).data, False)}
            assert found == {b".", b"..", b"file"}


def test_memory_on_a_file_system_that_hangs_holds_up_no_supervisor(
    share: HungMount, tmp_path: Path
) -> None:
    """The memory belongs to the VMM, and its file system may be the VMM's own: the supervisor asks
    that file system for nothing."""
    size = 1 << 20
    (tmp_path / "source" / "memory").write_bytes(bytes(size))
    with (
        Daemon("--inode-file-handles=prefer", share=tmp_path / "share") as daemon,
        Frontend(daemon.socket) as frontend,
        (share.path / "memory").open("r+b") as file,
    ):
        frontend.negotiate()
        table = struct.pack("<II", 1, 0) + Region(1 << 30, size, 1 << 40, 0).pack()
        with share.hanging():
            frontend.send(SET_MEM_TABLE, table, [file.fileno()])
            wait_until(lambda: "guest memory is in the file" in daemon.log.read_text(), 10, "line")
            supervisor = daemon.the("supervisor")
            where = Path(f"/proc/{supervisor}/wchan")
            wait_until(lambda: "poll" in where.read_text(), 10, "the supervisor waits for events")
