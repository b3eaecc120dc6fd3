# SPDX-License-Identifier: Apache-2.0
"""kill -9 of each process that is created again: the guest sees no error, no loss, no doubles.

Ring.reap checks that a head is never used twice, and Guest.finish that replies are exact.
"""

import errno
import itertools
import os
import random
import select
import signal
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
import pytest

from tests.waiting import HANG, LOADED
from vfsd.worker.sweep import INTERVAL_SECONDS, ROUNDS

from . import driver
from .conftest import OPTIONS, QUEUES, Folder, Line
from .daemon import Daemon, wait_until
from .driver import Frontend, GuestMemory, NoReplyError, Region
from .fuse import (
    CREATE_IN,
    FORGET_IN,
    FSYNC_IN,
    LINK_IN,
    LK_IN,
    MKDIR_IN,
    OPEN_OUT,
    RELEASE_IN,
    RENAME_IN,
    ROOT,
    Entry,
    Guest,
    Op,
    Pending,
    Reply,
    names,
    parse_dirents,
    read_in,
    write_in,
)

KILL_EVERY = 0.25  # seconds


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon of its own for each test: the number of times that its processes were killed
    matters."""
    with Daemon(*OPTIONS) as running:
        yield running


@pytest.fixture
def line(daemon: Daemon) -> Iterator[Line]:
    kept = Line(daemon)
    yield kept
    kept.close()


def kill(pid: int) -> None:
    assert pid > 1, f"{pid} is not a single process"
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def worker_of(daemon: Daemon, queue: int) -> int:
    """The worker of a queue, by its title. A worker that died often waits before it is created
    again."""
    return daemon.the("worker", f"queue {queue}")


def shared_files(daemon: Daemon) -> list[str]:
    """The files of the share that the sandbox has open, except for its root: paths there begin with
    its "/"."""
    holder = daemon.the(" holder")
    found = []
    for path in Path(f"/proc/{holder}/fd").iterdir():
        with suppress(OSError):
            target = str(path.readlink())
            if "/folder" in target or ("(deleted)" in target and "memfd" not in target):
                found.append(target)
    return found


class Killer(threading.Thread):
    """Kills one process after another at intervals, until it is stopped."""

    def __init__(self, victims: Callable[[], list[int]], every: float = KILL_EVERY) -> None:
        super().__init__()
        self._victims, self._every = victims, every
        self._ended = threading.Event()
        self.kills = 0

    def run(self) -> None:
        chance = random.Random(1)  # noqa: S311
        while not self._ended.wait(self._every * chance.uniform(0.8, 1.2)):
            with suppress(psutil.NoSuchProcess):
                if victims := self._victims():
                    kill(chance.choice(victims))
                    self.kills += 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


# A guest user is a generator: it yields requests and receives their replies.
Request = tuple[int, int, bytes, int]  # opcode, nodeid, body, room
User = Generator[Request, Reply, None]


def good(reply: Reply, op: int) -> bytes:
    name = errno.errorcode.get(reply.error, str(reply.error))
    assert reply.error == 0, f"{Op(op).name}: the guest sees {name}"
    return reply.data


def user(folder: Folder, number: int, counts: list[int], may_lose: bool = False) -> User:
    """Make, fill, read, link, rename and remove files; check each step and count the rounds.
    `may_lose`: a file that is open and has no name may be lost."""

    def ask(
        op: int, nodeid: int, body: bytes, room: int = 4096
    ) -> Generator[Request, Reply, bytes]:
        return good((yield op, nodeid, body, room), op)

    name = b"%d" % number
    path = folder.path / name.decode()
    while True:
        data = yield from ask(Op.MKDIR, folder.nodeid, MKDIR_IN.pack(0o755, 0) + names(name))
        home = Entry.parse(data).nodeid
        body = CREATE_IN.pack(os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o100644, 0, 0) + names(b"a")
        data = yield from ask(Op.CREATE, home, body)
        file, fh = Entry.parse(data).nodeid, OPEN_OUT.unpack_from(data, 128)[0]
        for i in range(4):
            body = write_in(fh=fh, offset=1000 * i, size=1000, flags=os.O_RDWR) + b"%d" % i * 1000
            yield from ask(Op.WRITE, file, body)
        data = yield from ask(Op.READ, file, read_in(fh=fh, offset=500, size=3000))
        assert data == b"0" * 500 + b"1" * 1000 + b"2" * 1000 + b"3" * 500
        yield from ask(Op.FSYNC, file, FSYNC_IN.pack(fh, 1, 0))
        data = yield from ask(Op.LINK, home, LINK_IN.pack(file) + names(b"b"))
        assert Entry.parse(data).attr.nlink == 2
        yield from ask(Op.RENAME, home, RENAME_IN.pack(home) + names(b"b", b"c"))
        data = yield from ask(Op.SYMLINK, home, names(b"s", b"target"))
        link = Entry.parse(data).nodeid
        body = OPEN_OUT.pack(0, 0, 0)[:8]
        directory = OPEN_OUT.unpack((yield from ask(Op.OPENDIR, home, body)))[0]
        data = yield from ask(Op.READDIR, home, read_in(fh=directory, size=4096))
        assert {e.name for e in parse_dirents(data, False)} == {b".", b"..", b"a", b"c", b"s"}
        yield from ask(Op.RELEASEDIR, home, RELEASE_IN.pack(directory, 0, 0, 0))
        for child in (b"a", b"c", b"s"):
            yield from ask(Op.UNLINK, home, names(child))
        reply = yield Op.READ, file, read_in(fh=fh, offset=3999, size=9), 4096
        if not (may_lose and reply.error == errno.ESTALE):
            assert good(reply, Op.READ) == b"3", "an unlinked file that is open"
        reply = yield Op.RELEASE, file, RELEASE_IN.pack(fh, 0, 0, 0), 4096
        if not may_lose:
            good(reply, Op.RELEASE)
        yield from ask(Op.RMDIR, folder.nodeid, names(name))
        assert not path.exists()
        for nodeid, lookups in ((file, 2), (link, 1), (home, 1)):
            yield Op.FORGET, nodeid, FORGET_IN.pack(lookups), 0
        counts[number] += 1


def run_users(
    guest: Guest,
    users: list[User],
    seconds: float,
    enough: Callable[[], bool],
    may_fail: AbstractSet[int] = frozenset(),
) -> None:
    """Let the users work on their queues, each of them with one request under way, for `seconds`
    and until there was `enough`, which takes longer on a loaded machine. `may_fail`: errors that a
    user would have accepted, had there been time."""
    start = time.monotonic()
    is_over = False
    working: list[tuple[User, Pending]] = []
    for number, person in enumerate(users):
        op, nodeid, body, room = next(person)
        queue = 1 + number % QUEUES
        working.append((person, guest.submit(op, nodeid, body, room=room, queue=queue)))
    while working:
        lasted = time.monotonic() - start
        is_over = is_over or lasted > LOADED * seconds or (lasted > seconds and enough())
        assert lasted < LOADED * seconds + driver.TIMEOUT, "requests were lost"
        for ring in guest.frontend.rings.values():
            ring.reap()
        going = []
        for person, pending in working:
            if pending.head not in guest.frontend.rings[pending.queue].done:
                going.append((person, pending))
                continue
            reply = guest.finish(pending)
            if is_over:
                if reply.error not in may_fail:
                    good(reply, pending.op)
                continue
            op, nodeid, body, room = person.send(reply)
            queue = pending.queue % QUEUES + 1
            going.append((person, guest.submit(op, nodeid, body, room=room, queue=queue)))
        if len(going) == len(working) and all(a is b for a, b in zip(going, working, strict=True)):
            calls = [ring.call_fd for ring in guest.frontend.rings.values()]
            for fd in select.select(calls, [], [], 0.05)[0]:
                os.eventfd_read(fd)
        working = going


# Workers.


def test_workers_die_during_mixed_work(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    counts = [0] * 8
    users = [user(folder, number, counts) for number in range(8)]
    with Killer(lambda: daemon.titled("worker")) as killer:
        run_users(guest, users, 10, lambda: killer.kills >= 15 and min(counts) >= 3)
    assert killer.kills >= 15
    assert min(counts) >= 3, f"rounds done: {counts}"
    guest.call(Op.DESTROY)
    wait_until(lambda: not shared_files(daemon), 10, "the pool holds no file of the dead")


def test_requests_in_flight_when_a_worker_dies(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """A queue is full of requests that are not idempotent when the worker dies."""
    for turn in range(6):
        victim = worker_of(daemon, 1)
        waiting = []
        for i in range(60):
            body = MKDIR_IN.pack(0o755, 0) + names(b"%d-%d" % (turn, i))
            waiting.append(guest.submit(Op.MKDIR, folder.nodeid, body, room=128, kick=i == 59))
            if i == 59:
                time.sleep(turn * 0.0005)
                kill(victim)
        for pending in waiting:
            good(guest.finish(pending), Op.MKDIR)
        waiting = [
            guest.submit(Op.RMDIR, folder.nodeid, names(b"%d-%d" % (turn, i))) for i in range(60)
        ]
        kill(worker_of(daemon, 1))
        for pending in waiting:
            good(guest.finish(pending), Op.RMDIR)
        assert list(folder.path.iterdir()) == []
        time.sleep(KILL_EVERY)


def test_appends_are_neither_lost_nor_doubled(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"log", os.O_RDWR | os.O_APPEND)
    flags = os.O_WRONLY | os.O_APPEND
    lines = 0
    with Killer(lambda: daemon.titled("worker")):
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            waiting = []
            for _ in range(10):
                data = b"%07d\n" % lines
                body = write_in(fh=fh, size=len(data), flags=flags) + data
                waiting.append(guest.submit(Op.WRITE, entry.nodeid, body, room=8))
                lines += 1
            for pending in waiting:
                good(guest.finish(pending), Op.WRITE)
    assert (folder.path / "log").read_bytes() == b"".join(b"%07d\n" % i for i in range(lines))


def runs(data: bytes) -> list[tuple[bytes, int]]:
    """The runs of equal bytes: each byte, and how often it is repeated."""
    return [(bytes([byte]), len(list(same))) for byte, same in itertools.groupby(data)]


def test_an_append_that_a_death_cut_short_goes_on_where_it_ended(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """A kill ends a write between two of its pages, wherever these pages are in the file."""
    size = 256 * 1024
    entry, fh = guest.create(folder.nodeid, b"log", os.O_RDWR | os.O_APPEND)
    log, head = folder.path / "log", b"not a whole page"
    records = [bytes([b"abcdefgh"[i]]) * size for i in range(8)]
    with Killer(lambda: daemon.titled("worker")):
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            log.write_bytes(head)
            waiting = []
            for record in records:
                body = write_in(fh=fh, size=size, flags=os.O_WRONLY | os.O_APPEND) + record
                waiting.append(guest.submit(Op.WRITE, entry.nodeid, body, room=8))
            for pending in waiting:
                reply = guest.finish(pending)
                good(reply, Op.WRITE)
                assert int.from_bytes(reply.data[:4], "little") == size
            assert runs(log.read_bytes()[len(head) :]) == [(record[:1], size) for record in records]


def test_open_files_and_locks_outlive_their_worker(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    guest.write(entry.nodeid, fh, 0, b"kept")
    guest.call(Op.UNLINK, folder.nodeid, names(b"x"))
    whole = (0, (1 << 63) - 1, 1, 1, 0, 0)
    guest.call(Op.SETLK, entry.nodeid, LK_IN.pack(fh, 1, *whole))
    waiting = guest.submit(Op.SETLKW, entry.nodeid, LK_IN.pack(fh, 2, *whole), queue=2)
    with pytest.raises(NoReplyError):
        guest.finish(waiting, 0.1)
    for queue in range(1, QUEUES + 1):
        kill(worker_of(daemon, queue))
    for queue in range(1, QUEUES + 1):
        assert guest.read(entry.nodeid, fh, 0, 9, queue=queue) == b"kept"
    refused = guest.ask(Op.SETLK, entry.nodeid, LK_IN.pack(fh, 3, *whole))
    assert refused.error == errno.EAGAIN
    unlock = LK_IN.pack(fh, 1, 0, (1 << 63) - 1, 2, 1, 0, 0)
    guest.call(Op.SETLK, entry.nodeid, unlock)
    assert guest.finish(waiting).error == 0


def test_what_the_guest_holds_is_no_orphan_of_a_dead_worker(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """After a death the pool looks for orphans for more than a second: it must not close the
    guest's files, however many they are."""
    held = {}
    for number in range(1000):
        (folder.path / str(number)).touch()
        entry = guest.lookup(folder.nodeid, b"%d" % number)
        held[entry.nodeid] = entry.attr.ino
    kill(worker_of(daemon, 1))
    time.sleep((ROUNDS + 1) * INTERVAL_SECONDS)
    for nodeid, ino in held.items():
        assert guest.getattr(nodeid).ino == ino


def test_an_idle_worker_dies_and_the_next_kick_is_seen(daemon: Daemon, guest: Guest) -> None:
    for _ in range(4):
        kill(worker_of(daemon, 2))
        time.sleep(KILL_EVERY)
        guest.lookup(ROOT, b".", queue=2)


def test_a_worker_dies_while_a_ring_is_stopped(daemon: Daemon, guest: Guest) -> None:
    """The worker's successor acknowledges the message."""
    for _ in range(4):
        for _ in range(50):
            guest.submit(Op.GETATTR, ROOT, bytes(16), room=104)
        kill(worker_of(daemon, 1))
        guest.frontend.restart_ring(1)
        guest.lookup(ROOT, b".", queue=1)
        time.sleep(KILL_EVERY)


# The supervisor.


def supervisor(daemon: Daemon) -> int:
    """The supervisor, as soon as it has set its title."""
    return daemon.the("supervisor")


def test_requests_go_on_without_a_supervisor(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    counts = [0] * 4
    users = [user(folder, number, counts) for number in range(4)]
    workers = daemon.titled("worker")
    with Killer(lambda: daemon.titled("supervisor"), 2.6) as killer:
        run_users(guest, users, 6, lambda: killer.kills >= 2 and min(counts) >= 3)
    assert killer.kills >= 2
    assert min(counts) >= 3
    assert daemon.titled("worker") == workers


def test_a_new_supervisor_takes_the_session_over(daemon: Daemon, guest: Guest) -> None:
    frontend = guest.frontend
    old = supervisor(daemon)
    for _ in range(3):
        kill(old)
        frontend.restart_ring(1)
        guest.lookup(ROOT, b".", queue=1)
        spare = GuestMemory(1 << 20, regions=1)
        message = frontend.region_message(Region(1 << 40, 1 << 20, 1 << 50, 0))
        frontend.tell(driver.ADD_MEM_REG, message, [spare.fd])
        frontend.tell(driver.REM_MEM_REG, message)
        spare.close()
        new = supervisor(daemon)
        assert new != old
        old = new
    frontend.close()
    with Frontend(daemon.socket) as second:
        other = Guest(second.setup(2))
        other.init()
        other.lookup(ROOT, b".", queue=2)


def test_a_file_with_the_number_of_a_closed_connection_stays_open(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """A new worker starts with a connection to the supervisor. The supervisor dies, the connection
    is closed and the next file gets the connection's number; when the worker dies as well, that
    file stays open."""
    names_ = [b"%d" % number for number in range(100)]
    for name in names_:
        (folder.path / name.decode()).write_bytes(name)
    nodeids = {name: guest.lookup(folder.nodeid, name).nodeid for name in names_}
    for _ in range(4):
        old = supervisor(daemon)
        kill(worker_of(daemon, 1))
        guest.getattr(ROOT)
        time.sleep(KILL_EVERY)
        kill(old)
        opened = {name: guest.open(nodeids[name], os.O_RDONLY) for name in names_}
        while supervisor(daemon) == old:
            time.sleep(0.01)
        kill(worker_of(daemon, 1))
        time.sleep(KILL_EVERY)
        for name, fh in opened.items():
            assert guest.read(nodeids[name], fh, 0, 9) == name
            guest.release(nodeids[name], fh)


def test_a_supervisor_dies_between_messages_and_replies(daemon: Daemon, guest: Guest) -> None:
    """Every message is obeyed once and acknowledged once, at whatever point the supervisor dies."""
    frontend = guest.frontend
    spare = GuestMemory(1 << 20, regions=1)
    message = frontend.region_message(Region(1 << 40, 1 << 20, 1 << 50, 0))
    rounds = 0
    with Killer(lambda: daemon.titled("supervisor"), 2.6) as killer:
        begin = time.monotonic()
        while time.monotonic() < begin + 9 or killer.kills < 2 or rounds <= 10:
            assert time.monotonic() < begin + HANG, f"{killer.kills} deaths, {rounds} rounds"
            frontend.tell(driver.ADD_MEM_REG, message, [spare.fd])
            frontend.restart_ring(1 + rounds % QUEUES)
            frontend.tell(driver.REM_MEM_REG, message)
            call = struct.pack("<Q", 1), [frontend.rings[1].call_fd]
            frontend.tell(driver.SET_VRING_CALL, *call)
            guest.lookup(ROOT, b".", queue=1 + rounds % QUEUES)
            rounds += 1
    spare.close()
    assert frontend.ask(driver.GET_FEATURES).u64


def test_a_supervisor_dies_while_nobody_is_connected(daemon: Daemon) -> None:
    kill(supervisor(daemon))
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
    kill(supervisor(daemon))
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.getattr(ROOT)


def test_with_give_up_after_a_supervisor_that_dies_again_and_again_ends_everything() -> None:
    with Daemon(*OPTIONS, "--give-up-after=5") as daemon:
        family = {process.pid: process for process in daemon.processes()}
        while not daemon.exited():
            with suppress(psutil.NoSuchProcess):
                family |= {process.pid: process for process in daemon.processes()}
                for pid in daemon.titled("supervisor"):
                    kill(pid)
            time.sleep(0.05)
        assert daemon.process.wait(HANG) == 1
        assert "giving up, as --give-up-after=5 demands" in daemon.log.read_text()
        assert not psutil.wait_procs(list(family.values()), HANG)[1]
