# SPDX-License-Identifier: Apache-2.0
"""Waiting for a process of the sandbox that is alive but does not answer.

Such a process waits for a file system that hangs, is frozen, or starts on a slow host. With a pool
that serves every file that the guest has open would be lost, and SIGKILL would not even end a
process that hangs: so the supervisor waits, however long that takes, and says in growing intervals
what for. A signal (StopError, out of the
event loop) or the front-end going away (`give_up`) ends the wait early.
"""

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

from vfsd.supervisor.descendants import state_of
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.log_collector import LogCollector

CHECK_SECONDS: Final = 0.5  # between two looks at whether waiting still makes sense
INTERVAL_MAX: Final = 600.0  # seconds between two lines


class Patience:
    """`give_up()` is called twice a second while something is slow; it raises to end the wait."""

    def __init__(self, loop: EventLoop, log: LogCollector) -> None:
        self._loop = loop
        self._log = log
        self.give_up: Callable[[], None] = lambda: None

    def wait(
        self, condition: Callable[[], bool], what: str, pid: int | None, seconds: float
    ) -> None:
        """Turn the event loop until `condition()` holds.

        After `seconds`, and in growing intervals from then on, a line says that the process `pid`,
        where that is known, is waited for and `what` it should do.
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
        self._log.write("info", f"{what}: done, after {monotonic() - start:.0f} s")

    def report(self, what: str, pid: int | None, seconds: float) -> None:
        """One line: a process is slow, and what it waits for."""
        state = f"; process {pid} is {describe_state(pid)}" if pid else ""
        self._log.write("warn", f"{what}: waiting for {seconds:.0f} s{state}")


def describe_state(pid: int) -> str:
    """The state of a process and where in the kernel it waits, if that may be read."""
    try:
        where = Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        where = ""
    return f"in state {state_of(pid)}" + (f" ({where})" if where.strip("0") else "")
