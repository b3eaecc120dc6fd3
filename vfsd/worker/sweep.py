# SPDX-License-Identifier: Apache-2.0
"""After a death: find and close the files that only the dead worker knew of.

The fd table outlives its workers. What a worker had opened and not yet entered into a shared table
when it died, or taken out of one and not yet closed, is in no table and nobody's: an orphan. But so
is, for a moment, what a living worker has just opened or is about to close, and to close that for
it would hit whoever gets the number next.

So a suspect is marked, and it has to last: two rounds under the same number, in no table when a
round ends, while in each round every living worker was seen, at some time, to hold no fd outside
the tables (worker_table_held_nothing). An idle worker is seen so at once, a busy one at its next
turn. One round does not do. An fd goes one way: opened, in a table, taken out, closed; so what a
living worker had just opened when the first round began can have been taken out again when it ends,
but then it is closed when the second one does.

The mark is the fd's close-on-exec flag, which all have when they are opened: a number that has it
again was closed and used again. (Whether it is the same open file, kcmp(2), does not tell: several
numbers may be duplicates of one, see open_cache.h.)
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from vfsd.transport.native import lib
from vfsd.worker.descriptors import read_array
from vfsd.worker.tables import Tables

INTERVAL_SECONDS: Final = 0.5
ROUNDS: Final = 2
LOOKS: Final = 20  # then a suspect that somebody seems to hold is let alone


@dataclass
class Suspect:
    """An fd that no table knew of when a look was taken."""

    epoch: int  # begun when this round began
    cleared: set[int] = field(default_factory=set)  # slots that held nothing at a time since then
    rounds: int = 0  # that are over
    looks: int = 0


class Sweep:
    """`spared()` are the fds of the pool, of zmq and of the job, which are in no table either.
    `close()` closes orphans; those it has not closed when it returns are spared until it has."""

    def __init__(
        self,
        tables: Tables,
        slots: int,
        proc_fd: int,
        spared: Callable[[], set[int]],
        close: Callable[[set[int]], None],
    ) -> None:
        self._tables = tables
        self._slots = slots
        self._proc_fd = proc_fd
        self._spared = spared
        self._close = close
        self._suspects: dict[int, Suspect] = {}
        self._is_new = False  # a death since the latest look
        self.due: float | None = None  # time.monotonic

    def begin(self) -> None:
        """A worker died."""
        self._is_new = True
        self.due = self.due or time.monotonic() + INTERVAL_SECONDS

    def look_if_due(self) -> int:
        """Look, if it is time; returns how many orphans were closed."""
        if self.due is None or time.monotonic() < self.due:
            return 0
        closed = self._end_rounds()
        if self._is_new:
            self._is_new = False
            self._find_suspects()
        self.due = time.monotonic() + INTERVAL_SECONDS if self._suspects else None
        return closed

    def _find_suspects(self) -> None:
        loose = self._loose(self._open_fds() - set(self._suspects))
        if not loose:
            return
        epoch = lib.worker_table_new_epoch(self._tables.workers)
        for fd in loose:
            if lib.descriptors_mark(fd):  # else closed meanwhile
                self._suspects[fd] = Suspect(epoch)

    def _loose(self, fds: set[int]) -> set[int]:
        """Those in no table and not spared."""
        loose = fds - self._spared()
        # The tables come last: what was entered or retired meanwhile is in them.
        return loose - self._table_fds() if loose else loose

    def _end_rounds(self) -> int:
        """Begin the next round of those whose round is over; returns how many orphans were closed
        because it was their last."""
        over = {fd for fd in list(self._suspects) if self._is_round_over(fd)}
        loose = self._loose(over)
        for fd in over - loose:
            self._let_go(fd)
        orphans = {fd for fd in loose if self._suspects[fd].rounds == ROUNDS}
        epoch = lib.worker_table_new_epoch(self._tables.workers)
        for fd in loose - orphans:
            self._suspects[fd].epoch = epoch
            self._suspects[fd].cleared.clear()
        return self._close_orphans(orphans)

    def _is_round_over(self, fd: int) -> bool:
        """Has every worker been seen without it? One that cannot be an orphan is let go."""
        suspect = self._suspects[fd]
        suspect.looks += 1
        suspect.cleared |= self._not_holding(suspect.epoch)
        is_over = len(suspect.cleared) == self._slots
        suspect.rounds += is_over
        if not lib.descriptors_is_marked(fd) or (not is_over and suspect.looks >= LOOKS):
            self._let_go(fd)
            return False
        return is_over

    def _let_go(self, fd: int) -> None:
        del self._suspects[fd]
        lib.descriptors_unmark(fd)

    def _close_orphans(self, fds: set[int]) -> int:
        """Returns how many there are that are still what they were."""
        for fd in fds:
            del self._suspects[fd]
        same = {fd for fd in fds if lib.descriptors_is_marked(fd)}
        if same:
            self._close(same)
        return len(same)

    def _not_holding(self, epoch: int) -> set[int]:
        workers = self._tables.workers
        return {
            slot
            for slot in range(self._slots)
            if lib.worker_table_held_nothing(workers, slot, epoch)
        }

    def _open_fds(self) -> set[int]:
        listing = os.open(
            "self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc_fd
        )
        try:
            return {int(name) for name in os.listdir(listing)} - {listing}  # noqa: PTH208 - an fd
        finally:
            os.close(listing)

    def _table_fds(self) -> set[int]:
        return read_fds(lib.inode_table_fds, self._tables.inodes) | read_fds(
            lib.file_table_fds, self._tables.files
        )


def read_fds(read: Callable[[Any, Any, int], int], table: Any) -> set[int]:
    """All fds of a table, which may grow meanwhile."""
    fds, count = read_array(lambda ret, room: read(table, ret, room))
    return set(fds[0:count])  # here: a slice does not keep the array alive
