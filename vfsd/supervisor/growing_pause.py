# SPDX-License-Identifier: Apache-2.0
"""The pauses between attempts at something that fails again and again. Does no I/O."""


class GrowingPause:
    """Pauses of `first` seconds, then each twice as long as the pause before, at most `longest`."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first
        self.grew = False  # the pause that next() returned last was longer than the one before

    def next(self) -> float:
        """The seconds to wait before the next attempt."""
        pause = self._next
        self.grew = pause == self._first or pause < self._longest
        self._next = min(2 * pause, self._longest)
        return pause

    def reset(self) -> None:
        """An attempt has succeeded: the next pause is the first one again."""
        self._next = self._first
