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
QUIET_SECONDS: Final = 10.0  # a row of deaths ends with this time without a death
GIVE_UP_SECONDS: Final = 10.0  # the time within which --give-up-after counts deaths


class Restart(NamedTuple):
    """What to do after a death: wait for `pause` seconds, and log a line that ends with `note`, or
    nothing if `note` is None."""

    pause: float
    note: str | None


class GrowingPause:
    """The pause before the next attempt. The first `at_once` failures in a row cost no pause; each
    failure after them costs twice the pause of the one before, from `first` up to `maximum`
    seconds. A row of failures ends with `calm` seconds without a failure."""

    def __init__(
        self, maximum: float, first: float = 0.1, at_once: int = 1, calm: float = 60.0
    ) -> None:
        self._maximum = maximum
        self._first = first
        self._at_once = at_once
        self._calm = calm
        self._last = float("-inf")
        self.in_a_row = 0  # failures

    def next(self, now: float) -> float:
        """Record a failure at `now` (monotonic seconds); returns the pause in seconds."""
        self.in_a_row = self.in_a_row + 1 if now - self._last < self._calm else 1
        self._last = now
        doublings = self.in_a_row - self._at_once - 1
        return min(self._maximum, self._first * 2.0 ** min(doublings, 20)) * (doublings >= 0)


class RestartPolicy:
    """The deaths of a process and its successors. `give_up_after`: after this number of deaths
    within GIVE_UP_SECONDS there is no successor; 0: there always is one."""

    def __init__(self, give_up_after: int = 0) -> None:
        self._limit = give_up_after
        self._times: deque[float] = deque(maxlen=give_up_after)
        self._growing = GrowingPause(LONGEST_PAUSE, FIRST_PAUSE, AT_ONCE, QUIET_SECONDS)
        self._pause = 0.0
        self._unreported = 0

    def after_death(self, now: float) -> Restart | None:
        """Record a death at `now` (monotonic seconds); None if there were too many deaths."""
        self._times.append(now)
        if self._is_too_often(now):
            return None
        before, self._pause = self._pause, self._growing.next(now)
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
        is_full = 0 < self._limit == len(self._times)
        return is_full and now - self._times[0] <= GIVE_UP_SECONDS

    def _note(self) -> str:
        left_out, self._unreported = self._unreported, 0
        parts = [
            f" in {self._pause:g} s, after {self._growing.in_a_row} deaths in a row"
            * bool(self._pause),
            f"; {left_out} earlier deaths were not logged" * bool(left_out),
        ]
        return "".join(parts)
