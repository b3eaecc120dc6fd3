# SPDX-License-Identifier: Apache-2.0
"""A launcher without a daemon, and its deputy; and which processes are found by its session."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.waiting import wait_until
from vfsd.supervisor.descendants import descendants, of_session, process_of
from vfsd.supervisor.launcher_record import LauncherRecord
from vfsd.supervisor.spawn import reap_by_itself
from vfsd.supervisor.succession import Succession
from vfsd.transport.native import check, lib

SLEEP = (sys.executable, "-c", "import time; time.sleep(1000)")
# The first thread ends, and the second thread goes on.
HEADLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
libc = ctypes.CDLL(None)
libc.pthread_exit(None)
"""


@contextmanager
def launcher(
    run: Callable[[Succession], None], leave_template: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, LauncherRecord]]:
    """The first launcher, which calls `run` and then waits. Yields the id of its session, and its
    record. Launchers, deputies and their children are killed at the end. Their parent has nothing
    else to do than to reap them."""
    record = LauncherRecord()
    parent = os.fork()
    if parent == 0:
        try:
            check(lib.process_become_subreaper())
            reap_by_itself()
            if os.fork() == 0:
                succession = Succession("test", record, leave_template, lambda: None)
                succession.begin()
                run(succession)
            signal.pause()
        finally:
            os._exit(1)
    try:
        wait_until(lambda: record.launcher, 10, "the launcher begins")
        session = record.launcher
        yield session, record
    finally:
        while left := descendants(parent):
            for process in left:
                process.kill()
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)


def _alive(session: int) -> set[int]:
    return {process.pid for process in of_session(session) if not process.has_ended()}


def _serve(succession: Succession) -> None:
    while True:
        succession.await_readable(list)


def test_launcher_and_deputy_take_each_others_place() -> None:
    with launcher(_serve) as (session, record):
        for deaths in range(1, 4):
            wait_until(lambda: len(record.pids()) == 2, 10, "a deputy")
            old = record.launcher
            (deputy,) = record.pids() - {old}
            os.kill(old, signal.SIGKILL)
            wait_until(lambda heir=deputy: record.launcher == heir, 10, "the deputy takes over")  # type: ignore[misc]
            assert record.deaths == deaths
        wait_until(lambda: _alive(session) == record.pids(), 10, "nothing but the two is left")


def test_a_deputy_without_a_pidfd_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher could not see its end, and would fork another deputy beside it."""
    open_pidfd = os.pidfd_open
    refused: list[int] = []

    def open_late(pid: int) -> int:
        if pid != os.getpid() and len(refused) < 2:
            refused.append(pid)
            raise OSError
        return open_pidfd(pid)

    def run(succession: Succession) -> None:
        monkeypatch.setattr(os, "pidfd_open", open_late)
        _serve(succession)

    with launcher(run) as (session, record):
        wait_until(lambda: len(record.pids()) == 2, 10, "a deputy")
        wait_until(lambda: _alive(session) == record.pids(), 10, "the other deputies are gone")


def test_an_error_ends_a_deputy_and_not_its_wait() -> None:
    """A deputy that went on would serve beside the launcher."""

    def fail() -> None:
        raise OSError

    with launcher(_serve, fail) as (session, record):
        wait_until(lambda: len(record.pids()) == 2, 10, "a deputy")
        (deputy,) = record.pids() - {session}
        wait_until(lambda: deputy not in _alive(session), 10, "the deputy has ended")
        assert record.launcher == session
        assert not record.deaths


def test_a_process_that_has_left_the_session_is_found() -> None:
    """Without a filter of system calls the worker of a sandbox may begin a session of its own."""

    def run(_: Succession) -> None:
        subprocess.Popen(SLEEP, start_new_session=True)

    with launcher(run) as (session, _):
        wait_until(lambda: len(_alive(session)) == 2, 10, "the child is there")
        (child,) = _alive(session) - {session}
        wait_until(lambda: process_of(child).session == child, 10, "the child has left")
        assert child in _alive(session)
    assert not _alive(session)


def test_a_process_has_ended_when_its_last_thread_has() -> None:
    with subprocess.Popen([sys.executable, "-c", HEADLESS]) as process:
        wait_until(lambda: process_of(process.pid).state == "Z", 10, "the first thread has ended")
        found = process_of(process.pid)
        assert not found.has_ended()
        process.kill()
        wait_until(found.has_ended, 10, "all threads have ended")
