# SPDX-License-Identifier: Apache-2.0
"""After a death: find and close the files that only the dead worker knew of.

The fd table outlives its workers. If a worker dies after it has opened an fd and before it has
entered that fd into a shared table, or after it has taken an fd out of a table and before it has
closed that fd, then the fd is in no table and belongs to no process: it is an orphan. But for a
moment the same is true of an fd that a living worker has just opened or is about to close, and
closing that fd here could close an unrelated file that has since been given the same number.

So a suspect fd is marked, and is closed only if it lasts for two rounds: open under the same number
all the time, and in no table at the end of each round. A round ends when every living worker was
seen, at some time in the round, to hold no fd outside the tables (worker_table_held_nothing). An
idle worker is seen so at once, a busy worker at its next turn. One round is not enough. An fd goes
through four states in this order: opened, in a table, taken out, closed. So an fd that a living
worker had just opened when the first round began may have been taken out of a table again when that
round ends, but then it is closed when the second round ends.

The mark is that the close-on-exec flag is off. Every fd has that flag when it is opened: a marked
number that has the flag again was closed and used again. (Comparing open files by kcmp(2) would not
be enough: several numbers may be duplicates of one open file, see open_cache.h.)
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
LOOKS: Final = 20  # after these a suspect is dropped: a worker seems to hold it


@dataclass
class Suspect:
    """An fd that was open and in no table at a look."""

    epoch: int  # the epoch that began with this round
    cleared: set[int] = field(default_factory=set)  # slots seen to hold nothing since then
    rounds: int = 0  # number of rounds that are over
    looks: int = 0


class Sweep:
    """`spared()` returns the fds of the pool, of zmq and of the job, which are in no table either.
    `close()` closes orphans; fds that are not yet closed when `close()` returns are in spared()
    until they are."""

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
        """Look for orphans from now on: a worker died."""
        self._is_new = True
        self.due = self.due or time.monotonic() + INTERVAL_SECONDS

    def look_if_due(self) -> int:
        """Look for orphans, if it is time; returns the number of orphans closed."""
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
            if lib.descriptors_mark(fd):  # else it is not open any more
                self._suspects[fd] = Suspect(epoch)

    def _loose(self, fds: set[int]) -> set[int]:
        """The fds that are in no table and not spared."""
        loose = fds - self._spared()
        # The tables are read last: an fd that was entered or retired since `fds` was read is in
        # them.
        return loose - self._table_fds() if loose else loose

    def _end_rounds(self) -> int:
        """Begin the next round of the suspects whose round is over. Suspects whose last round is
        over are orphans and are closed; returns their number."""
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
        """Has every worker been seen to hold nothing in this round? A suspect that cannot be an
        orphan is dropped."""
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
        """Close the orphans whose fd number was not used again; returns their number."""
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
    """All fds of a table; the table may grow during the call."""
    fds, count = read_array(lambda ret, room: read(table, ret, room))
    return set(fds[0:count])  # here: a slice does not keep the array alive
