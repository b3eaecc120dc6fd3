# SPDX-License-Identifier: Apache-2.0
"""The keeper: the launched process, too simple to crash.

It holds the fd table that it shares with the supervisor, so nothing is lost with a supervisor that
dies; creates the next one; passes signals on; and is the parent of everything whose own parent is
gone (child subreaper), so nothing outlives it. It reads no input at all. It is the main process of
a service, from which alone systemd takes notice (NotifyAccess=main): a supervisor that can be
connected to sends it the signal READY, and the keeper passes that on.

The end. Everything below it is killed at once and waited for, but not for ever: a process that
waits for a frozen or hung file system ends when that file system answers, which may be never. It
is named, and then left behind; it has been killed and cannot do anything any more.
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
LATE_SECONDS: Final = 3.0  # what has been killed and does not end is named
GIVE_UP_SECONDS: Final = 10.0  # and left behind

# Called in the supervisor with the keeper's pid and "is it a successor?".
Supervise = Callable[[int, bool], int]


def keep(
    name: str,
    launcher: Launcher,
    confine: Callable[[], None],
    supervise: Supervise,
    ready: Callable[[], None],
    say: Say,
) -> int:
    """Run supervisors until one ends in order; returns the exit status for this process.

    `launcher` is the one child that is left when this returns. `confine`: called when all
    that needs privilege is done. `ready`: called at each READY.
    """
    setproctitle(f"vfsd: {name} keeper")
    check(lib.process_become_subreaper())
    hold_signals()
    confine()
    children = Children(launcher, say)
    policy = RestartPolicy()
    pid = _create(name, supervise, False)
    while (status := _wait(pid, children, ready)) is None:
        if not policy.may_restart(time.monotonic()):
            say("error", "the supervisor died too often within seconds; giving up")
            status = 1
            break
        say("warn", "the supervisor died; the next one goes on")
        pid = _create(name, supervise, True)
    kill_descendants(children, say)
    return status


class Children:
    """Reaps this process's children, and says so if the launcher is among the dead."""

    def __init__(self, launcher: Launcher, say: Say) -> None:
        self.launcher = launcher
        self._say = say

    def reap(self) -> dict[int, int]:
        """Wait status by pid of every child that ended."""
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
    """The time that processes have to end after SIGKILL."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._since = time.monotonic()
        self._pause = FIRST_PAUSE
        self._has_spoken = False

    def wait(self, left: list[Process]) -> bool:
        """Wait for the end of all, or for a while, which grows; False if it is too long already."""
        await_end(left, self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        waited = time.monotonic() - self._since
        names = ", ".join(map(str, left))
        if waited >= LATE_SECONDS and not self._has_spoken:
            self._has_spoken = True
            self._say("warn", f"killed {LATE_SECONDS:.0f} s ago and still there: {names}")
        if waited >= GIVE_UP_SECONDS:
            self._say("error", f"ends without waiting any longer for {names}")
        return waited < GIVE_UP_SECONDS


def kill_descendants(children: Children, say: Say) -> None:
    """Kill and reap everything below this process but the launcher."""
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
        lib.process_forget_code()  # what the start needed, and waiting does not
        return pid
    status = STATUS_CRASHED
    try:
        setproctitle(f"vfsd: {name} supervisor")
        status = supervise(keeper, is_successor)
    finally:
        os._exit(status)


def _wait(supervisor: int, children: Children, ready: Callable[[], None]) -> int | None:
    """Wait for the supervisor's end, passing signals on; its exit status, None if it crashed."""
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
    return 0  # whatever it waits for, kill_descendants() waits for it
