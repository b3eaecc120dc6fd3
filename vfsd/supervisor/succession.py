# SPDX-License-Identifier: Apache-2.0
"""The launcher's deputy, which becomes the launcher when the launcher dies.

THEORY

Purpose. Only the launcher has privileges, so nothing else could create another launcher. Without a
launcher no sandbox that is lost could be replaced.

Actors. The launcher forks its deputy before it serves, and another deputy when one dies. The deputy
has all fds of the launcher except those of the template, and waits for the launcher's end. Then the
deputy is the launcher: it forks a deputy of its own, executes a template, and answers the requests
that wait on the socket. It returns on the stack on which the launcher had forked it, so the stack
does not grow from death to death.

Invariants. Launcher and deputy have the same rights, and the deputy reads nothing at all. Only the
launcher serves: the deputy looks at the socket when the launcher has ended, and not before. An
error ends a deputy that waits. There is no deputy that the launcher does not know: a deputy whose
pidfd cannot be opened is killed.

Session. The processes of a sandbox would not be descendants of the next launcher: when a launcher
dies, its children become children of the keeper, or of a process of the host. So the first launcher
begins a session (setsid(2)), in which all launchers, deputies, templates and sandboxes are, and the
processes of the sandboxes are found by it. A process leaves its session by setsid(2) only, which
the filter of the sandbox does not allow; without the filter (--seccomp=none) such a process is
found as long as it descends from a process of the session. The id of the session is not used again
as long as a process is in the session.

Death. A request that the launcher had read is lost with it, and maybe was carried out: the client
notices that there is another launcher (launcher_record.py), and asks again. If launcher and deputy
die before one of them has noticed the death of the other, there is no launcher any more. The record
is changed in an order in which each process of the two is named at any time, except for a deputy
that has just been forked: that deputy may be killed as a process of a sandbox, and is replaced.

The end. The launcher that finds the socket closed cleans up, marks that in `_is_clean`, and ends
its deputy. If the launcher dies before the mark, the deputy finds the socket closed, and does the
rest.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from vfsd.supervisor.descendants import has_ended, pid_of
from vfsd.supervisor.launcher_record import LauncherRecord
from vfsd.supervisor.restart_policy import GrowingPause
from vfsd.supervisor.spawn import reap_by_itself
from vfsd.transport.native import check, lib
from vfsd.transport.process_title import setproctitle

LONGEST_PAUSE: Final = 2.0  # seconds between two deputies that die soon
AT_ONCE: Final = 5
CALM_SECONDS: Final = 10.0
END_SECONDS: Final = 5.0


class Succession:
    """In the launcher and its deputies. `leave_template` is called in a deputy, and gives up the
    fds of the template; `took_over` is called in a deputy that has become the launcher."""

    def __init__(
        self,
        name: str,
        record: LauncherRecord,
        leave_template: Callable[[], None],
        took_over: Callable[[], None],
    ) -> None:
        self._name = name
        self._record = record
        self._leave_template = leave_template
        self._took_over = took_over
        self._is_clean = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._deputy = -1  # its pidfd
        self._deaths = 0  # of launchers
        self._pause = GrowingPause(LONGEST_PAUSE, at_once=AT_ONCE, calm=CALM_SECONDS)
        self._due = 0.0  # when the next deputy is forked (time.monotonic)

    def begin(self) -> None:
        """Be the first launcher."""
        os.setsid()
        self._be_launcher()

    def await_readable(self, fds: Callable[[], Iterable[int]]) -> set[int]:
        """Wait until one of these fds is readable; returns those that are. Sees to it that there is
        a deputy; `fds` is asked in the launcher, which may be another process then."""
        while True:
            has_deputy = self._has_deputy()
            poll = select.poll()
            for fd in (*fds(), *((self._deputy,) if has_deputy else ())):
                poll.register(fd, select.POLLIN)
            left = max(0.0, self._due - time.monotonic())
            ready = {fd for fd, _ in poll.poll(None if has_deputy else left * 1000 + 1)}
            if self._deputy in ready:
                self._forget_deputy()
                continue
            if ready:
                return ready

    def owns(self, pid: int) -> bool:
        """Is this the pid of the launcher or of its deputy?"""
        with suppress(OSError):  # the deputy has ended
            return pid == os.getpid() or (self._deputy >= 0 and pid == pid_of(self._deputy))
        return False

    def end(self) -> None:
        """Everything has been cleaned up: end the deputy."""
        os.eventfd_write(self._is_clean, 1)
        if self._deputy >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._deputy, signal.SIGKILL)
            has_ended(self._deputy, END_SECONDS)

    def _has_deputy(self) -> bool:
        """Fork a deputy if there is none. False if there is still none, because deputies die soon
        or cannot be forked. Returns in the launcher only, which may be a former deputy of the
        process that made the call."""
        while self._deputy < 0 and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._pause.next(time.monotonic())
            with suppress(OSError):  # no process can be created for now
                self._fork()
        return self._deputy >= 0

    def _fork(self) -> None:
        """SIGCHLD is not ignored in here, so the pid of a deputy that ends early is not reused."""
        launcher = os.pidfd_open(os.getpid())
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_deputy(launcher)
                return
            self._deputy = _pidfd_or_kill(pid)
            self._record.note_deputy(pid)
        finally:
            reap_by_itself()
            os.close(launcher)

    def _be_deputy(self, launcher: int) -> None:
        """Wait for the end of the launcher; returns when this process is the launcher."""
        try:
            setproctitle(f"vfsd: {self._name} deputy")
            self._leave_template()
            lib.process_forget_code()
            poll = select.poll()
            poll.register(launcher, select.POLLIN)
            poll.poll()
            if has_ended(self._is_clean):  # the fd is readable
                os._exit(0)
            self._due = 0.0
            self._deaths += 1
            self._be_launcher()
        except BaseException:
            os._exit(1)  # to return would be to serve beside the launcher
        self._took_over()

    def _be_launcher(self) -> None:
        setproctitle(f"vfsd: {self._name} launcher")
        check(lib.process_become_subreaper())
        self._record.note_launcher(os.getpid(), self._deaths)

    def _forget_deputy(self) -> None:
        os.close(self._deputy)
        self._deputy = -1
        self._record.note_deputy(0)


def _pidfd_or_kill(pid: int) -> int:
    """A pidfd of this child, which has not been reaped. If there is none, for lack of fds or
    memory, the child is killed."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        raise
