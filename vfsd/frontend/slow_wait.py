# SPDX-License-Identifier: Apache-2.0
"""Waiting for a back-end that is there but does not answer yet.

The back-end may run on a slow host, or beside other load, or it may serve another VMM first. So a
wait has no time limit: a line on stderr says what is waited for, after SLOW_SECONDS and at growing
intervals. A signal (KeyboardInterrupt) or the end of the other side ends the wait. A wait that
begins after the signal ends with its first line.
"""

import sys
from time import monotonic
from typing import Final

SLOW_SECONDS: Final = 10.0  # after which the first line appears
INTERVAL_MAX: Final = 600.0  # seconds between two lines


class SlowWait:
    """One wait. `what` completes the line "still waiting after 10 s: ...". `is_brief`: the first
    line raises KeyboardInterrupt."""

    def __init__(self, what: str, is_brief: bool = False) -> None:
        self._what = what
        self._is_brief = is_brief
        self._start = monotonic()
        self._interval = SLOW_SECONDS
        self._due = self._start + self._interval

    def rest(self, seconds: float = INTERVAL_MAX) -> float:
        """Print the line if it is due. Returns how long to wait before the next call: at most
        `seconds`."""
        now = monotonic()
        if now >= self._due:
            line = f"vfsd: still waiting after {now - self._start:.0f} s: {self._what}"
            print(line, file=sys.stderr, flush=True)
            if self._is_brief:
                raise KeyboardInterrupt
            self._interval = min(INTERVAL_MAX, 2 * self._interval)
            self._due = now + self._interval
        return min(seconds, self._due - now)

    def rest_ms(self) -> int:
        """The same for poll(2), which would return early for a fraction of a millisecond."""
        return int(self.rest() * 1000) + 1
