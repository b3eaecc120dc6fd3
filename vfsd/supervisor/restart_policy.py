# SPDX-License-Identifier: Apache-2.0
"""How long to wait before a process that died is created again. Does no I/O.

A process is created again for ever, unless the operator limits its deaths (--give-up-after). The
first deaths in a row cost no pause, because the guest waits. A process that dies at once each time
would then keep a CPU busy, so the pause grows, up to a length that a guest survives. Each death
that makes the pause grow is logged; deaths after that are counted.
"""

from collections import deque
from typing import Final, NamedTuple

AT_ONCE: Final = 3  # deaths in a row without a pause
FIRST_PAUSE: Final = 0.05  # seconds
LONGEST_PAUSE: Final = 2.0
QUIET_SECONDS: Final = 10.0  # without a death, after which deaths are not in a row
GIVE_UP_SECONDS: Final = 10.0  # within which --give-up-after counts
PAUSE_MIN_SECONDS: Final = 0.1
CALM_SECONDS: Final = 60.0


class Restart(NamedTuple):
    """What to do after a death: wait for `pause` seconds, and log a line that ends with `note`, or
    nothing if `note` is None."""

    pause: float
    note: str | None


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
    """The deaths of a process and its successors. `give_up_after`: the number of deaths within
    GIVE_UP_SECONDS after which there is no successor; 0: any number."""

    def __init__(self, give_up_after: int = 0) -> None:
        self._limit = give_up_after
        self._times: deque[float] = deque(maxlen=give_up_after or 1)
        self._in_a_row = 0
        self._pause = 0.0
        self._unreported = 0

    def after_death(self, now: float) -> Restart | None:
        """Record a death at `now` (monotonic seconds); None if there were too many deaths."""
        quiet = bool(self._times) and now - self._times[-1] > QUIET_SECONDS
        self._times.append(now)
        if self._is_too_often(now):
            return None
        self._in_a_row = 1 if quiet else self._in_a_row + 1
        before, self._pause = self._pause, _pause(self._in_a_row)
        if self._pause and self._pause == before:
            self._unreported += 1
            return Restart(self._pause, None)
        return Restart(self._pause, self._note())

    def surrender(self, what: str) -> str:
        """The log line for the death after which after_death() returned None."""
        return (
            f"{what} died {self._limit} times within {GIVE_UP_SECONDS:.0f} s; giving up, as"
            f" --give-up-after={self._limit} demands"
        )

    def _is_too_often(self, now: float) -> bool:
        return len(self._times) == self._limit and now - self._times[0] <= GIVE_UP_SECONDS

    def _note(self) -> str:
        left_out, self._unreported = self._unreported, 0
        parts = [
            f" in {self._pause:g} s, after {self._in_a_row} deaths in a row" * bool(self._pause),
            f"; {left_out} earlier deaths were not logged" * bool(left_out),
        ]
        return "".join(parts)


def _pause(deaths: int) -> float:
    if deaths <= AT_ONCE:
        return 0.0
    doublings = min(deaths - AT_ONCE - 1, 16)
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2**doublings))
