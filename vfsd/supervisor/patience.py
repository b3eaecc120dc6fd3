# SPDX-License-Identifier: Apache-2.0
"""Waiting for a process of the sandbox that is alive but does not answer.

Such a process waits for a file system that hangs or is frozen, or it starts on a slow host. Killing
a pool that serves would lose every fd of the share, and SIGKILL does not even end a
process that hangs in the kernel. So the supervisor waits, however long that takes, and logs at
growing intervals what it waits for. A signal (StopError, raised by the event loop) or the end of
the front-end (`give_up`) ends the wait early.
"""

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

from vfsd.supervisor.descendants import state_of
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.log_collector import LogCollector

CHECK_SECONDS: Final = 0.5  # between two calls of give_up()
INTERVAL_MAX: Final = 600.0  # seconds between two log lines


class Patience:
    """Waits. `give_up()` is called twice a second during a wait, and ends the wait if it raises."""

    def __init__(self, loop: EventLoop, log: LogCollector) -> None:
        self._loop = loop
        self._log = log
        self.give_up: Callable[[], None] = lambda: None

    def wait(
        self, condition: Callable[[], bool], what: str, pid: int | None, seconds: float
    ) -> None:
        """Turn the event loop until `condition()` holds.

        After `seconds`, and in growing intervals from then on, a log line says `what` is waited
        for, and the state of the process `pid` if the pid is known.
        """
        start = monotonic()
        if self._loop.wait(condition, seconds):
            return
        interval, due = seconds, 0.0
        while True:
            now = monotonic()
            if now >= due:
                self.report(what, pid, now - start)
                interval = min(INTERVAL_MAX, 2 * interval)
                due = now + interval
            self.give_up()
            if self._loop.wait(condition, CHECK_SECONDS):
                break
        self._log.write("info", f"{what}: done after {monotonic() - start:.0f} s")

    def report(self, what: str, pid: int | None, seconds: float) -> None:
        """Log that a process is slow, and where in the kernel it waits."""
        state = f"; process {pid} is {describe_state(pid)}" if pid else ""
        self._log.write("warn", f"{what}: still waiting after {seconds:.0f} s{state}")


def describe_state(pid: int) -> str:
    """The state of a process and where in the kernel it waits, if that may be read."""
    try:
        where = Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        where = ""
    return f"in state {state_of(pid)}" + (f" ({where})" if where.strip("0") else "")
