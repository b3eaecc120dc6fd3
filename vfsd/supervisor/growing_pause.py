# SPDX-License-Identifier: Apache-2.0
"""The pauses between attempts at something that fails again and again. Does no I/O."""


class GrowingPause:
    """Pauses of `first` seconds, then each twice as long as the pause before, at most `longest`."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._last = 0.0
        self.grew = False  # the last pause is longer than the pause before it

    def next(self) -> float:
        """The seconds to wait before the next attempt."""
        pause = min(2 * self._last or self._first, self._longest)
        self.grew = pause > self._last
        self._last = pause
        return pause

    def reset(self) -> None:
        """An attempt has succeeded: the next pause is the first one again."""
        self._last = 0.0
