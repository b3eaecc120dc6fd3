# SPDX-License-Identifier: Apache-2.0
"""The keeper: the launched process, kept so simple that it does not crash.

The keeper shares its fd table with the supervisor, so a supervisor that dies loses nothing, and
creates the next supervisor. It passes signals on. It is the parent of every process whose own
parent is gone (child subreaper), so no process outlives the daemon. It reads no input at all. It is
the main process of a systemd service, and systemd accepts notifications from the main process alone
(NotifyAccess=main). So a supervisor that a VMM can connect to sends the signal READY to the keeper,
and the keeper notifies systemd.

The end. All descendants of the keeper are killed at once and waited for, but not for ever: a
process that waits for a frozen or hung file system ends when that file system answers, which may be
never. Such a process is named in the log and left behind. It has been killed, so it will not run
any more code of the program.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from vfsd.supervisor.descendants import Process, await_end, descendants
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.log_collector import Say
from vfsd.supervisor.restart_policy import RestartPolicy
from vfsd.supervisor.service import STATUS_CRASHED
from vfsd.supervisor.signals import READY, WATCHED, hold_signals
from vfsd.transport.ending_signals import ENDING
from vfsd.transport.native import check, lib
from vfsd.transport.process_title import setproctitle

STOP_SECONDS: Final = 0.8
FIRST_PAUSE: Final = 0.05  # seconds
LONGEST_PAUSE: Final = 0.5
LATE_SECONDS: Final = 3.0  # after which killed processes that have not ended are named
GIVE_UP_SECONDS: Final = 10.0  # after which they are left behind

# Called in the supervisor with the keeper's pid, and whether it follows a supervisor that died.
Supervise = Callable[[int, bool], int]


def keep(
    name: str,
    launcher: Launcher,
    confine: Callable[[], None],
    supervise: Supervise,
    ready: Callable[[], None],
    say: Say,
    is_successor: bool = False,
) -> int:
    """Run supervisors until one ends without a crash; returns the exit status for this process.

    When keep() returns, `launcher` is the only child left. `confine` is called when everything that
    needs privilege is done. `ready` is called at each signal READY. `is_successor`: the first
    supervisor goes on where that of an earlier daemon was.
    """
    setproctitle(f"vfsd: {name} keeper")
    check(lib.process_become_subreaper())
    hold_signals()
    confine()
    children = Children(launcher, say)
    policy = RestartPolicy()
    pid = _create(name, supervise, is_successor)
    while (status := _wait(pid, children, ready)) is None:
        if not policy.may_restart(time.monotonic()):
            say("error", "the supervisor died too often within seconds; giving up")
            status = 1
            break
        say("warn", "the supervisor died; another supervisor takes over")
        pid = _create(name, supervise, True)
    kill_descendants(children, say)
    return status


class Children:
    """Reaps the children of this process, and logs an error if the launcher has ended."""

    def __init__(self, launcher: Launcher, say: Say) -> None:
        self.launcher = launcher
        self._say = say

    def reap(self) -> dict[int, int]:
        """Reap every child that has ended; returns their wait statuses by pid."""
        ended: dict[int, int] = {}
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                ended[found[0]] = found[1]
        if self.launcher.pid in ended:
            self._say(
                "error",
                "the launcher died: the share goes on until its VMM goes away, but no other VMM"
                " can be served; start virtiofsd again",
            )
        return ended


class GracePeriod:
    """The time that is allowed for processes to end after SIGKILL."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._since = time.monotonic()
        self._pause = FIRST_PAUSE
        self._has_spoken = False

    def wait(self, left: list[Process]) -> bool:
        """Wait until all processes in `left` have ended, or for a pause, which grows from call to
        call. False if GIVE_UP_SECONDS have passed."""
        await_end(left, self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        waited = time.monotonic() - self._since
        names = ", ".join(map(str, left))
        if waited >= LATE_SECONDS and not self._has_spoken:
            self._has_spoken = True
            self._say("warn", f"killed {LATE_SECONDS:.0f} s ago and still there: {names}")
        if waited >= GIVE_UP_SECONDS:
            self._say("error", f"killed {GIVE_UP_SECONDS:.0f} s ago and left behind: {names}")
        return waited < GIVE_UP_SECONDS


def kill_descendants(children: Children, say: Say) -> None:
    """Kill and reap all descendants of this process except the launcher."""
    grace = GracePeriod(say)
    while left := [p for p in descendants(os.getpid()) if p.pid != children.launcher.pid]:
        for process in left:
            process.kill(children.launcher.kill)
        if not grace.wait(left):
            return
        children.reap()


def _create(name: str, supervise: Supervise, is_successor: bool) -> int:
    keeper = os.getpid()
    pid = check(lib.clone_process())
    if pid:
        lib.process_forget_code()  # give back the memory of code that only the start needed
        return pid
    status = STATUS_CRASHED
    try:
        setproctitle(f"vfsd: {name} supervisor")
        status = supervise(keeper, is_successor)
    finally:
        os._exit(status)


def _wait(supervisor: int, children: Children, ready: Callable[[], None]) -> int | None:
    """Wait for the end of the supervisor and pass signals on to it; returns its exit status, None
    if it crashed."""
    deadline: float | None = None
    while deadline is None or time.monotonic() < deadline:
        left = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        info = signal.sigtimedwait(WATCHED, left)
        if info is not None and info.si_signo == READY:
            ready()
        if info is not None and info.si_signo in ENDING:
            os.kill(supervisor, info.si_signo)
            deadline = deadline or time.monotonic() + STOP_SECONDS
        ended = children.reap().get(supervisor)
        if ended is not None:
            status = os.waitstatus_to_exitcode(ended)
            if deadline is not None:
                return max(0, status)
            return None if status < 0 or status == STATUS_CRASHED else status
    os.kill(supervisor, signal.SIGKILL)
    return 0  # kill_descendants() waits for the supervisor, which may hang in a system call
