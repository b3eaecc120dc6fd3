# SPDX-License-Identifier: Apache-2.0
"""Decides whether and when a process that died is created again. Does no I/O."""

from collections import deque
from typing import Final

PAUSE_MIN_SECONDS: Final = 0.1
CALM_SECONDS: Final = 60.0


class GrowingPause:
    """The pause before the next attempt: none at first, longer after each death or failure up to
    `maximum` seconds, and none again after CALM_SECONDS without any."""

    def __init__(self, maximum: float) -> None:
        self._maximum = maximum
        self._count = 0
        self._last = float("-inf")

    def next(self, now: float) -> float:
        """Record a death or failure at `now` (monotonic seconds); returns the pause in seconds."""
        self._count = self._count + 1 if now - self._last < CALM_SECONDS else 0
        self._last = now
        if not self._count:
            return 0.0
        return min(self._maximum, PAUSE_MIN_SECONDS * 2.0 ** min(self._count - 1, 20))


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
