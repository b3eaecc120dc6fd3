# SPDX-License-Identifier: Apache-2.0
"""The keeper: holds the fds and creates supervisors; kept so simple that it does not crash.

The keeper shares its fd table with the supervisor, so a supervisor that dies loses nothing, and
creates the next supervisor. It passes signals on. It reads no input at all. The first keeper is the
launched process, and the main process of a systemd service. systemd accepts notifications from the
main process alone (NotifyAccess=main). So a supervisor that a VMM can connect to sends the signal
READY to the keeper, and the keeper notifies systemd.

The keeper may die as well. The supervisor then creates another keeper (keeper_watch.py), which is
a child of that supervisor and not its parent, so it has no wait status: whether a supervisor
crashed, or has ended the share, is read from the saved state. The new keeper notifies systemd that
it is the main process now, which has an effect with NotifyAccess=all only.

The end. All processes of the daemon are killed at once and waited for, but not for ever: a process
that waits for a frozen or hung file system ends when that file system answers, which may be never.
Such a process is named in the log and left behind. It has been killed, so it will not run any more
code of the program. The descendants of the keeper are not enough: processes whose parent has died
may be the children of a process of the host. The sandboxes are in the session of the launcher
(succession.py), and a supervisor that has created this keeper is its parent.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from vfsd.supervisor.clones import NewRole, Role, create
from vfsd.supervisor.descendants import Process, await_end, descendants, process_of
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.log_collector import Say
from vfsd.supervisor.restart_policy import RestartPolicy
from vfsd.supervisor.resume import StateFile
from vfsd.supervisor.signals import READY, WATCHED
from vfsd.supervisor.systemd import ServiceManager
from vfsd.transport.ending_signals import ENDING
from vfsd.transport.native import check, lib
from vfsd.transport.process_title import setproctitle

STATUS_CRASHED: Final = 70  # EX_SOFTWARE: of a supervisor that did not end the share
STOP_SECONDS: Final = 0.8
FIRST_PAUSE: Final = 0.05  # seconds
LONGEST_PAUSE: Final = 0.5
LATE_SECONDS: Final = 3.0  # after which killed processes that have not ended are named
GIVE_UP_SECONDS: Final = 10.0  # after which they are left behind


class Supervise(Protocol):
    """Runs in a supervisor; returns its exit status."""

    def __call__(
        self, keeper: int, next_keeper: Callable[[int], Role], is_successor: bool
    ) -> int: ...


@dataclass(frozen=True)
class Supervisor:
    """The supervisor as its keeper sees it. `is_parent`: it has created this keeper."""

    pid: int
    is_parent: bool = False

    def has_ended(self, reaped: Container[int]) -> bool:
        """`reaped`: the children of this process that have ended by now."""
        return os.getppid() != self.pid if self.is_parent else self.pid in reaped

    def send(self, number: int) -> None:
        """Send a signal. The pid is not that of another process: a child has not been reaped, and
        a parent is alive."""
        if not self.is_parent or os.getppid() == self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def find(self) -> list[Process]:
        """The process, if this process is not an ancestor of it."""
        with contextlib.suppress(OSError):
            if self.is_parent and os.getppid() == self.pid:
                return [process_of(self.pid)]
        return []


@dataclass(frozen=True)
class Keeper:
    """What a keeper needs; every keeper of a daemon has the same."""

    name: str
    launcher: Launcher
    state: StateFile
    supervise: Supervise
    manager: ServiceManager
    give_up_after: int
    is_successor: bool  # the first supervisor goes on where that of an earlier daemon was
    say: Say

    def first(self) -> int:
        """The role of the launched process, which is confined by now; returns its exit status."""
        return self._keep(self._create(self.is_successor))

    def _next(self, supervisor: int) -> int:
        """The role of a keeper that the supervisor `supervisor` has created."""
        self._set_title()
        signal.set_wakeup_fd(-1)
        check(lib.process_watch_parent(signal.SIGCHLD))
        self.manager.name_main()
        return self._keep(Supervisor(supervisor, is_parent=True))

    def _set_title(self) -> None:
        setproctitle(f"vfsd: {self.name} keeper")

    def _keep(self, supervisor: Supervisor) -> int:
        """Run supervisors until the share has ended. When this returns, the launcher is the only
        process left."""
        policy = RestartPolicy(self.give_up_after)
        while (status := self._wait(supervisor)) is None:
            if (status := self._await_restart(policy)) is not None:
                break
            supervisor = self._create(is_successor=True)
        self._kill_all(supervisor)
        return status

    def _create(self, is_successor: bool) -> Supervisor:
        return Supervisor(create(partial(self._supervise, os.getpid(), is_successor)))

    def _supervise(self, keeper: int, is_successor: bool) -> int:
        """The role of a supervisor. Does not return: cleaning up is for keepers."""
        status = STATUS_CRASHED
        try:
            setproctitle(f"vfsd: {self.name} supervisor")
            status = self.supervise(keeper, lambda own: partial(self._next, own), is_successor)
        except NewRole:
            raise
        except BaseException:
            status = STATUS_CRASHED
        os._exit(status)

    def _wait(self, supervisor: Supervisor) -> int | None:
        """Wait for the end of the supervisor and pass signals on to it; returns the exit status of
        the program, None if the share has not ended."""
        deadline: float | None = None
        reaped = _reap()
        while not supervisor.has_ended(reaped):
            left = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
            info = signal.sigtimedwait(WATCHED, left)
            if info is not None and info.si_signo == READY:
                self.manager.report_ready()
            if info is not None and info.si_signo in ENDING:
                supervisor.send(info.si_signo)
                deadline = deadline or time.monotonic() + STOP_SECONDS
            if deadline is not None and time.monotonic() >= deadline:
                return 0  # _kill_all() waits for the supervisor, which may hang in a system call
            reaped = _reap()
        ended = self._ended()
        return 0 if ended is None and deadline is not None else ended

    def _ended(self) -> int | None:
        """The exit status that the last supervisor has saved, None if the share has not ended."""
        try:
            return self.state.load()[0].ended
        except (ValueError, LookupError, TypeError):  # the next supervisor says what is wrong
            return None

    def _await_restart(self, policy: RestartPolicy) -> int | None:
        """Wait until the next supervisor is due; returns the exit status if the daemon ends."""
        restart = policy.after_death(time.monotonic())
        if restart is None:
            self.say("error", policy.surrender("the supervisor"))
            return 1
        if restart.note is not None:
            self.say("warn", f"the supervisor died; another supervisor takes over{restart.note}")
        deadline = time.monotonic() + restart.pause
        while (left := deadline - time.monotonic()) > 0:
            info = signal.sigtimedwait(WATCHED, left)
            if info is not None and info.si_signo in ENDING:
                return 0
        return None

    def _kill_all(self, supervisor: Supervisor) -> None:
        """Kill and reap all processes of the daemon except those of the launcher."""
        grace = GracePeriod(self.say)
        while left := self._left(supervisor):
            for process in left:
                process.kill(self.launcher.kill)
            if not grace.wait(left):
                return
            _reap()

    def _left(self, supervisor: Supervisor) -> list[Process]:
        found = descendants(os.getpid()) + self.launcher.sandboxed() + supervisor.find()
        by_pid = {process.pid: process for process in found}
        return [by_pid[pid] for pid in by_pid.keys() - self.launcher.own_pids()]


def _reap() -> set[int]:
    """Reap every child that has ended; returns their pids."""
    ended = set()
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
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
