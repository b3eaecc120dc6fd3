# SPDX-License-Identifier: Apache-2.0
"""Connects to a VMM that listens (--connect).

The launcher calls connect(2), because the VMM's folder may be closed to the supervisor, which has
no privileges. The request has no path: the launcher knows the path from the options.

Until the VMM is there, and while it accepts connections and closes them without a message, there
are pauses between the attempts, which grow to PAUSE_MAX.
"""

from time import monotonic
from typing import Final

from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.launcher_requests import LauncherGoneError
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.restart_policy import GrowingPause
from vfsd.transport.errors import OperatorError

PAUSE_MAX: Final = 1.0  # seconds


class Dialer:
    """Connects to the VMM at `place`, again and again."""

    def __init__(self, launcher: Launcher, log: LogCollector, place: str) -> None:
        self._launcher = launcher
        self._log = log
        self._place = place
        self._pause = GrowingPause(PAUSE_MAX)
        self._last = 0.0  # the last pause, in seconds
        self._was_silent = False

    def dial(self, loop: EventLoop) -> int:
        """Connect, and turn the event loop between the attempts; returns the fd of the connection.
        OperatorError if there is no launcher."""
        self._log.write("info", f"connecting to a VMM that listens on '{self._place}'")
        if self._was_silent:
            self._wait(loop, "the VMM closed the connection without a message")
        while True:
            try:
                return self._launcher.connect()
            except LauncherGoneError as error:
                raise OperatorError(f"cannot connect to '{self._place}': {error}") from None
            except OSError as error:
                self._wait(loop, f"the VMM does not listen ({error.strerror})")

    def hung_up(self, has_spoken: bool) -> None:
        """The connection has ended. `has_spoken`: the VMM had sent a message."""
        self._was_silent = not has_spoken
        if has_spoken:
            self._pause, self._last = GrowingPause(PAUSE_MAX), 0.0

    def _wait(self, loop: EventLoop, reason: str) -> None:
        seconds = self._pause.next(monotonic())
        if seconds > self._last:
            text = f"'{self._place}': {reason}; trying again in {seconds:g} s"
            self._log.write("info", text)
        self._last = seconds
        loop.wait(lambda: False, seconds)
