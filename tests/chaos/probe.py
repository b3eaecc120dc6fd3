# SPDX-License-Identifier: Apache-2.0
"""Measures how long a death holds up the users of a share.

A thread for each queue looks up a name that does not exist, which no cache answers, about once in a
millisecond. Which queue serves a look-up is decided by `vfsd mount`; each of its queues has a
thread, and takes the next request as soon as it is free.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from .killer import Event

PERIOD: Final = 0.001
STALL: Final = 0.005  # seconds; a shorter look-up is a quick one
SLACK: Final = 0.005  # a death may come this long before a look-up begins
LATE: Final = 0.1  # a death that has an effect after this time is slow


@dataclass(frozen=True)
class Stall:
    """A look-up that took long (seconds, monotonic)."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class Probe:
    """Looks up names in `folder`, in `count` threads, until the block ends."""

    def __init__(self, folder: Path, count: int) -> None:
        self.stalls: list[Stall] = []
        self.errors: list[str] = []
        self.looks = 0
        self._ended = threading.Event()
        names = [folder / f"missing-{number}" for number in range(count)]
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in names]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def join(self, seconds: float) -> bool:
        """Wait for the last look-ups; False if one of them hangs."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, path: Path) -> None:
        while not self._ended.wait(PERIOD):
            begin = time.monotonic()
            try:
                path.stat()
                self.errors.append(f"{path} exists")
            except FileNotFoundError:
                pass
            except OSError as error:
                self.errors.append(str(error))
                return
            end = time.monotonic()
            self.looks += 1
            if end - begin > STALL:
                self.stalls.append(Stall(begin, end))


def cause(stall: Stall, events: list[Event]) -> Event | None:
    """The event that explains a stall. Of the events during the stall this is the longest stop that
    ended during the stall, or else the death of a holder, which holds up all queues, or else the
    first kill. Without an event during the stall it is the last one shortly before: when a holder
    dies, the kernel needs some time to end the processes of its sandbox."""
    during = [e for e in events if stall.begin - SLACK <= e.until <= stall.end]
    if during:
        return max(during, key=lambda e: (e.until - e.at, "holder" in e.what, -e.at))
    before = [e for e in events if stall.begin - LATE <= e.until < stall.begin]
    return max(before, key=lambda event: event.until, default=None)


def longest_stalls(stalls: list[Stall], events: list[Event]) -> dict[int, float]:
    """For each event that held up a look-up: its id() and the seconds of the longest stall."""
    longest: dict[int, float] = {}
    for stall in stalls:
        if (event := cause(stall, events)) is not None:
            longest[id(event)] = max(longest.get(id(event), 0.0), stall.seconds)
    return longest
