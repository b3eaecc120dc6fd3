# SPDX-License-Identifier: Apache-2.0
"""The supervisor's eye on its keeper: creates another keeper when the keeper is gone.

The first keeper is the parent of its supervisor; a keeper that was created here is a child of its
supervisor. If that supervisor dies, the keeper creates the next supervisor as its own child, and so
on. Nothing is lost as long as one of the two is alive and has had time to notice the death of the
other.
"""

import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from vfsd.supervisor.boot import Boot
from vfsd.supervisor.clones import Role, create
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.restart_policy import RestartPolicy
from vfsd.supervisor.signals import READY, hold_signals
from vfsd.transport.ending_signals import ENDING


class KeeperWatch:
    """Watches the keeper in the event loop. `role`: what a keeper runs that the supervisor with a
    given pid has created. `is_needed()` is called when a keeper is gone, and raises if the daemon
    ends in that case."""

    def __init__(self, boot: Boot, keeper: int, role: Callable[[int], Role]) -> None:
        self._boot = boot
        self._keeper = keeper
        self._role = role
        self._policy = RestartPolicy()
        self._pidfd: int | None = None
        self._due = math.inf  # when the next keeper is created
        self._is_ready = False  # a VMM can connect
        self._is_needed: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int:
        """The pid of the keeper, which may have died."""
        return self._keeper

    def end_share(self) -> bool:
        """Have the keeper end the share, as SIGTERM does; False if there is no keeper now."""
        if self._pidfd is None:
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
            return True
        return False

    def start(self, loop: EventLoop, is_needed: Callable[[], None]) -> None:
        """Watch the keeper that has created this supervisor. The keeper may be gone by now."""
        self._loop, self._is_needed = loop, is_needed
        loop.every_turn(self._tick)
        pidfd = _open(self._keeper)
        if pidfd is not None and os.getppid() == self._keeper:
            self._watch(pidfd)
            return
        if pidfd is not None:  # another process has the pid by now
            os.close(pidfd)
        self._lost()

    def ready(self) -> None:
        """A VMM can connect: have the keeper notify systemd."""
        self._is_ready = True
        self._boot.report_ready()
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, READY)

    def name(self) -> None:
        """Have the pid file name the keeper. Repeated when a launcher has died, maybe with the
        request."""
        if self._pidfd is not None:
            self._boot.launcher.name_keeper(self._pidfd)

    def _watch(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._loop.register(pidfd, self._lost)
        self.name()

    def _lost(self) -> None:
        if self._pidfd is not None:
            self._loop.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        with suppress(ChildProcessError):  # the first keeper was not a child
            os.waitpid(self._keeper, os.WNOHANG)
        self._is_needed()
        self._plan("the keeper died")

    def _plan(self, why: str) -> None:
        now = time.monotonic()
        restart = self._policy.after_death(now)
        assert restart  # the policy has no limit
        if restart.note is not None:
            self._boot.log.write("warn", f"{why}; another keeper takes over{restart.note}")
        self._due = now + restart.pause

    def _tick(self) -> float:
        """Create a keeper if it is time; returns the seconds until then."""
        if (left := self._due - time.monotonic()) > 0:
            return left
        self._due = math.inf
        hold_signals()  # no signal may reach the keeper before it waits for signals
        try:
            self._keeper = create(self._role(os.getpid()), self._boot.kept_fds)
            # No other process can have the pid, because the child has not been reaped.
            self._watch(os.pidfd_open(self._keeper))
        except OSError as error:
            self._plan(f"a keeper cannot be created ({error.strerror})")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        if self._is_ready:
            self.ready()
        return max(0.0, self._due - time.monotonic())


def _open(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.pidfd_open(pid)
    return None
