# SPDX-License-Identifier: Apache-2.0
"""The keeper: the launched process, too simple to crash.

It holds the fd table that it shares with the supervisor, so nothing is lost with a supervisor that
dies; creates the next one; passes signals on; and is the parent of everything whose own parent is
gone (child subreaper), so nothing outlives it. It reads no input at all.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from setproctitle import setproctitle

from vfsd.supervisor.descendants import descendants
from vfsd.supervisor.restart_policy import RestartPolicy
from vfsd.supervisor.service import ENDING, STATUS_CRASHED
from vfsd.transport.native import check, lib

STOP_SECONDS: Final = 0.8
WATCHED: Final = (*ENDING, signal.SIGCHLD)

# Called in the supervisor with the keeper's pid and "is it a successor?".
Supervise = Callable[[int, bool], int]
Say = Callable[[str, str], None]  # level, text


def hold_signals() -> None:
    """Let signals wait for keep(), so that whatever they end is put in order first."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)


def keep(name: str, launcher: int, supervise: Supervise, say: Say) -> int:
    """Run supervisors until one ends in order; returns the exit status for this process."""
    setproctitle(f"vfsd: {name} keeper")
    check(lib.process_become_subreaper())
    hold_signals()
    policy = RestartPolicy()
    pid = _create(name, supervise, False)
    while (status := _wait(pid)) is None:
        if not policy.may_restart(time.monotonic()):
            say("error", "the supervisor died too often within seconds; giving up")
            status = 1
            break
        say("warn", "the supervisor died; the next one goes on")
        pid = _create(name, supervise, True)
    kill_descendants(launcher)
    return status


def kill_descendants(spare: int) -> None:
    """Kill and reap everything below this process but `spare`, a pid."""
    while pids := [pid for pid in descendants(os.getpid()) if pid != spare]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        time.sleep(0.001)


def _create(name: str, supervise: Supervise, is_successor: bool) -> int:
    keeper = os.getpid()
    pid = check(lib.clone_process())
    if pid:
        lib.process_forget_code()  # what the start needed, and waiting does not
        return pid
    status = STATUS_CRASHED
    try:
        setproctitle(f"vfsd: {name} supervisor")
        status = supervise(keeper, is_successor)
    finally:
        os._exit(status)


def _wait(supervisor: int) -> int | None:
    """Wait for the supervisor's end, passing signals on; its exit status, None if it crashed."""
    deadline: float | None = None
    while True:
        left = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        info = signal.sigtimedwait(WATCHED, left)
        if info is not None and info.si_signo in ENDING:
            os.kill(supervisor, info.si_signo)
            deadline = deadline or time.monotonic() + STOP_SECONDS
        ended = _reap().get(supervisor)
        if ended is not None:
            status = os.waitstatus_to_exitcode(ended)
            if deadline is not None:
                return max(0, status)
            return None if status < 0 or status == STATUS_CRASHED else status
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(supervisor, signal.SIGKILL)


def _reap() -> dict[int, int]:
    """Wait status by pid of every child that ended."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    return ended
