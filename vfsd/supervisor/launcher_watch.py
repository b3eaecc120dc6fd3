# SPDX-License-Identifier: Apache-2.0
"""The supervisor's eye on the launcher: logs its death, and whether its deputy has taken over.

The event loop turns when a launcher dies, and until its successor is there, so what waits in the
loop for an answer notices the death. The successor may be there before its predecessor was seen to
die, and after the deaths were counted in this turn: so there is another turn when a launcher is
seen for the first time."""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from vfsd.supervisor.boot import Boot
from vfsd.supervisor.descendants import has_ended
from vfsd.supervisor.event_loop import EventLoop

REPLACED: Final = "the launcher died; its deputy has taken over"
LOST: Final = (
    "the launcher died, and no deputy was left: the share goes on until its VMM goes away, but no"
    " other VMM can be served; start virtiofsd again"
)
LOOK_SECONDS: Final = 0.05  # between the death of a launcher and its successor


class LauncherWatch:
    """`replaced` is called when a deputy has taken over."""

    def __init__(self, boot: Boot, loop: EventLoop, replaced: Callable[[], None]) -> None:
        self._launcher = boot.launcher
        self._log = boot.log
        self._loop = loop
        self._replaced = replaced
        self._pid = -1  # of the launcher that is watched
        loop.every_turn(self._tick)

    def _tick(self) -> float:
        """Log what has happened; returns the seconds until the next look."""
        record = self._launcher.record
        for _ in range(record.take_unlogged()):
            self._log.write("warn", REPLACED)
            self._replaced()
        if self._pid == record.launcher:
            return math.inf
        if self._launcher.is_lost():  # first: another process may have the pid by now
            if record.note_lost():
                self._log.write("error", LOST)
            return math.inf
        return 0.0 if self._watch(record.launcher) else LOOK_SECONDS

    def _watch(self, pid: int) -> bool:
        """Have the event loop turn when the launcher ends; False if it has ended."""
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            if has_ended(pidfd):  # and its parent has not reaped it
                os.close(pidfd)
                return False
            self._pid = pid
            self._loop.register(pidfd, lambda: self._lost(pidfd, pid))
            return True
        return False

    def _lost(self, pidfd: int, pid: int) -> None:
        self._loop.unregister(pidfd)
        os.close(pidfd)
        if self._pid == pid:
            self._pid = -1
