# SPDX-License-Identifier: Apache-2.0
"""Rules of flock, record locks and open file description locks, also between share and host."""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from .process import Child, all_results, attempt, in_child
from .rules import on_the_host, rule
from .syscalls import F_OFD_SETLK, F_OFD_SETLKW, lock
from .tree import make, read

EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def _open(path: str = "f") -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


@contextmanager
def _held(take: Callable[[], object]) -> Iterator[None]:
    """A context in which another process holds the lock that `take` takes."""
    ready, ready_writer = os.pipe()
    go, go_writer = os.pipe()

    def hold() -> None:
        take()
        os.write(ready_writer, b"x")
        os.read(go, 1)

    child = Child(hold)
    os.close(ready_writer)
    assert os.read(ready, 1), "the lock was not taken"
    try:
        yield
    finally:
        os.write(go_writer, b"x")
        child.result()


def _flock(path: str, kind: int) -> str:
    fd = _open(path)
    outcome = attempt(fcntl.flock, fd, kind)
    os.close(fd)
    return outcome


def _soon(call: Callable[[], str]) -> str:
    """Repeat the call while the lock is held. A FUSE client sends RELEASE some time after the last
    close(2), on any queue, so the lock may be released late."""
    deadline = time.monotonic() + 2
    while (outcome := call()) == "EAGAIN" and time.monotonic() < deadline:
        pass
    return outcome


def _record(path: str, kind: int, start: int = 0, length: int = 0) -> str:
    fd = _open(path)
    outcome = attempt(lock, fd, fcntl.F_SETLK, kind, start, length)
    os.close(fd)
    return outcome


@rule(["EAGAIN", "EAGAIN", "ok", "ok"])
def flock_excludes_another_process() -> object:
    make("f")
    with _held(lambda: fcntl.flock(_open(), fcntl.LOCK_EX)):
        found = [_flock("f", EXCLUSIVE), _flock("f", SHARED)]
    with _held(lambda: fcntl.flock(_open(), fcntl.LOCK_SH)):
        found.append(_flock("f", SHARED))
    return [*found, _soon(lambda: _flock("f", EXCLUSIVE))]


@rule(["EAGAIN", "EAGAIN", "ok"])
def flock_holds_between_share_and_host() -> object:
    make("f")
    with _held(lambda: fcntl.flock(_open(), fcntl.LOCK_EX)):
        found = [_flock(on_the_host("f"), EXCLUSIVE)]
    with _held(lambda: fcntl.flock(_open(on_the_host("f")), fcntl.LOCK_EX)):
        found.append(_flock("f", SHARED))
    return [*found, _soon(lambda: _flock("f", EXCLUSIVE))]


@rule(["EAGAIN", "ok", "ok", "EAGAIN", "ok"])
def flock_is_of_the_open_file_description() -> object:
    first, second = _open(), _open()
    copy = os.dup(first)
    fcntl.flock(first, EXCLUSIVE)
    found = [attempt(fcntl.flock, second, EXCLUSIVE), attempt(fcntl.flock, copy, EXCLUSIVE)]
    found.append(attempt(fcntl.flock, copy, SHARED))
    os.close(first)
    found.append(attempt(fcntl.flock, second, EXCLUSIVE))
    os.close(copy)
    return [*found, _soon(lambda: attempt(fcntl.flock, second, EXCLUSIVE))]


@rule(["EAGAIN", "ok", "ok", "EAGAIN", "ok"])
def record_locks_are_of_a_process_and_a_range() -> object:
    make("f")
    with _held(lambda: lock(_open(), fcntl.F_SETLK, WRITE, 10, 10)):
        found = [_record("f", WRITE, 19, 1), _record("f", WRITE, 20, 1), _record("f", READ, 0, 10)]
    with _held(lambda: lock(_open(), fcntl.F_SETLK, READ, 0, 0)):
        found += [_record("f", WRITE, 1 << 40, 1), _record("f", READ, 5, 1)]
    return found


@rule(["EAGAIN", "EAGAIN", "ok"])
def record_locks_hold_between_share_and_host() -> object:
    make("f")
    with _held(lambda: lock(_open(), fcntl.F_SETLK, WRITE, 0, 5)):
        found = [_record(on_the_host("f"), WRITE, 4, 1)]
    with _held(lambda: lock(_open(on_the_host("f")), fcntl.F_SETLK, WRITE, 0, 5)):
        found.append(_record("f", READ, 0, 1))
    return [*found, _record("f", WRITE)]


@rule(["ok", "ok"])
def closing_any_fd_of_a_file_drops_the_process_record_locks() -> object:
    first = _open()
    lock(first, fcntl.F_SETLK, WRITE)
    blocked = in_child(lambda: _record("f", WRITE)) == "EAGAIN"
    os.close(_open())
    return ["ok" if blocked else "not held", in_child(lambda: _record("f", WRITE))]


def _take(kind: int, start: int, length: int) -> None:
    lock(_open(), fcntl.F_SETLK, kind, start, length)


@rule([UNLOCK, (WRITE, 10, 20), (READ, 30, 0)])
def getlk_describes_what_is_in_the_way() -> object:
    make("f")
    free = lock(_open(), fcntl.F_GETLK, WRITE)[0]
    found: list[object] = []
    for kind, start, length in ((WRITE, 10, 20), (READ, 30, 0)):
        with _held(partial(_take, kind, start, length)):
            got = lock(_open(), fcntl.F_GETLK, WRITE, 0, 0)
            found.append((got[0], *got[2:4]))
    return [free, *found]


@rule(["EAGAIN", "ok", "ok", "EAGAIN", "EAGAIN"])
def locks_are_split_merged_and_downgraded() -> object:
    make("f")

    def take() -> None:
        fd = _open()
        lock(fd, fcntl.F_SETLK, WRITE, 0, 100)
        lock(fd, fcntl.F_SETLK, UNLOCK, 40, 20)
        lock(fd, fcntl.F_SETLK, READ, 80, 20)

    with _held(take):
        return [
            _record("f", READ, 39, 1),
            _record("f", WRITE, 40, 20),
            _record("f", READ, 80, 20),
            _record("f", WRITE, 80, 20),
            _record("f", READ, 60, 1),
        ]


def _wait_for_flock() -> None:
    fcntl.flock(_open(), fcntl.LOCK_EX)


def _wait_for_record_lock() -> None:
    lock(_open(), fcntl.F_SETLKW, WRITE)


WAITS: Final = (_wait_for_flock, _wait_for_record_lock)


def _seconds(wait: Callable[[], object]) -> float:
    start = time.monotonic()
    wait()
    return time.monotonic() - start


@rule([True, True])
def who_waits_for_a_lock_gets_it() -> object:
    make("f")
    found = []
    for wait in WAITS:
        with _held(wait):
            child = Child(partial(_seconds, wait))
            time.sleep(0.15)
        found.append(child.result() < 5)
    return found


@rule(["EINTR", "EINTR"])
def a_signal_ends_the_wait_for_a_lock() -> object:
    make("f")
    found = []
    for wait in WAITS:
        with _held(wait):
            found.append(in_child(partial(_interrupted, wait)))
    return found


def _interrupted(wait: Callable[[], object]) -> str:
    class AlarmError(Exception):
        pass

    def ring(*_: object) -> None:
        raise AlarmError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        wait()
    except AlarmError:
        return "EINTR"
    return "locked"


@rule(["ok", "EAGAIN", "ok"])
def a_process_that_dies_leaves_no_lock() -> object:
    make("f")
    ready, writer = os.pipe()

    def hold() -> None:
        fd = _open()
        fcntl.flock(fd, fcntl.LOCK_EX)
        lock(fd, fcntl.F_SETLK, WRITE)
        os.write(writer, b"x")
        time.sleep(30)

    child = Child(hold)
    os.read(ready, 1)
    blocked = _record("f", WRITE)
    os.kill(child.pid, signal.SIGKILL)
    try:
        child.result()
    except AssertionError:
        pass  # the child died, as it should
    return [_eventually(lambda: _flock("f", EXCLUSIVE)), blocked, _record("f", WRITE)]


def _eventually(call: Callable[[], str]) -> str:
    """Repeat the call until it succeeds. RELEASE follows close(2), so a FUSE mount releases a flock
    a moment later."""
    deadline = time.monotonic() + 5
    while (outcome := call()) != "ok" and time.monotonic() < deadline:
        time.sleep(0.01)
    return outcome


@rule(["EAGAIN", "ok", "EAGAIN", "ok"])
def ofd_locks_are_of_the_open_file_description() -> object:
    first, second = _open(), _open()
    lock(first, F_OFD_SETLK, WRITE, 0, 10)
    found = [
        attempt(lock, second, F_OFD_SETLK, READ, 0, 10),
        attempt(lock, os.dup(first), F_OFD_SETLK, WRITE, 0, 10),
        in_child(lambda: attempt(lock, _open(), F_OFD_SETLK, WRITE, 5, 1)),
    ]
    lock(first, F_OFD_SETLK, UNLOCK, 0, 10)
    return [*found, attempt(lock, second, F_OFD_SETLKW, READ, 0, 10)]


@rule([b"400"])
def a_counter_under_a_record_lock_loses_nothing() -> object:
    return _count(lambda fd: lock(fd, fcntl.F_SETLKW, WRITE))


@rule([b"400"])
def a_counter_under_flock_loses_nothing() -> object:
    return _count(lambda fd: fcntl.flock(fd, fcntl.LOCK_EX))


def _count(take: Callable[[int], object]) -> list[bytes]:
    make("f", b"0")

    def add() -> None:
        for _ in range(100):
            fd = _open()
            take(fd)
            number = int(os.pread(fd, 20, 0))
            os.pwrite(fd, b"%d" % (number + 1), 0)
            os.close(fd)

    all_results([add] * 4)
    return [read("f")]
