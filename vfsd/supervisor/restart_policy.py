# SPDX-License-Identifier: Apache-2.0
"""Decides whether a process that died is created again, or dies too often. Does no I/O."""

from collections import deque


class RestartPolicy:
    """Allows fewer than `deaths` deaths within any `seconds`."""

    def __init__(self, deaths: int = 5, seconds: float = 10.0) -> None:
        self._times: deque[float] = deque(maxlen=deaths)
        self._deaths = deaths
        self._seconds = seconds

    def may_restart(self, now: float) -> bool:
        """Record a death at `now` (monotonic seconds); False if there were too many deaths."""
        self._times.append(now)
        return len(self._times) < self._deaths or now - self._times[0] > self._seconds
