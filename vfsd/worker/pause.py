# SPDX-License-Identifier: Apache-2.0
"""How long the successor of a process waits, if such processes die soon after their start."""

from dataclasses import dataclass
from typing import Final

FREE_DEATHS: Final = 5  # short lives in a row before the next process has to wait
FIRST_SECONDS: Final = 0.01
DOUBLED_MAX: Final = 2  # how often the pause is doubled after a life that was of use: to 40 ms


@dataclass
class Pause:
    """The pause doubles up to `longest` seconds with each life of less than `short` seconds, and
    ends with a longer life."""

    longest: float
    short: float
    short_lives: int = 0  # in a row

    def note_life(self, seconds: float, was_of_use: bool = False) -> None:
        """A process died that had lived for `seconds`. `was_of_use`: it had done some of its work,
        and was killed from outside."""
        self.short_lives = self.short_lives + 1 if seconds < self.short else 0
        if was_of_use:
            self.short_lives = min(self.short_lives, FREE_DEATHS + DOUBLED_MAX)

    @property
    def seconds(self) -> float:
        excess = self.short_lives - FREE_DEATHS
        return 0.0 if excess <= 0 else min(self.longest, FIRST_SECONDS * 2 ** min(excess, 10))
