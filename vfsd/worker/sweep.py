# SPDX-License-Identifier: Apache-2.0
"""After a death: find and close the files that only the dead worker knew of.

The fd table outlives its workers. What a worker had opened and not yet entered into a shared table
when it died, or taken out of one and not yet closed, is in no table and nobody's: an orphan. But so
is, for a moment, what a living worker has just opened or is about to close, and to close that for
it would hit whoever gets the number next.

So a suspect is kept by a duplicate, and is an orphan once it has been the same open file all along
and every living worker was seen, at some time after that, to hold no fd outside the tables
(worker_table_held_nothing). An idle worker is seen so at once, a busy one at its next turn.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from vfsd.transport.native import ffi, lib
from vfsd.worker.tables import Tables

INTERVAL_SECONDS: Final = 0.5
LOOKS: Final = 20  # then a suspect that somebody seems to hold is let alone


@dataclass
class Suspect:
    duplicate: int
    epoch: int  # no worker knew it outside the tables before this epoch began
    cleared: set[int] = field(default_factory=set)  # slots that do not hold it
    looks: int = 0


class Sweep:
    """`spared()` are the fds of the pool, of zmq and of the job, which are in no table either."""

    def __init__(
        self, tables: Tables, slots: int, proc_fd: int, spared: Callable[[], set[int]]
    ) -> None:
        self._tables = tables
        self._slots = slots
        self._proc_fd = proc_fd
        self._spared = spared
        self._suspects: dict[int, Suspect] = {}
        self._is_new = False  # a death since the latest look
        self.due: float | None = None  # time.monotonic

    def begin(self) -> None:
        """A worker died."""
        self._is_new = True
        self.due = self.due or time.monotonic() + INTERVAL_SECONDS

    def fds(self) -> set[int]:
        """The duplicates, which are the sweep's own."""
        return {suspect.duplicate for suspect in self._suspects.values()}

    def look_if_due(self) -> int:
        """Look, if it is time; returns how many orphans were closed."""
        if self.due is None or time.monotonic() < self.due:
            return 0
        closed = sum(self._try(fd) for fd in list(self._suspects))
        if self._is_new:
            self._is_new = False
            self._find_suspects()
        self.due = time.monotonic() + INTERVAL_SECONDS if self._suspects else None
        return closed

    def _find_suspects(self) -> None:
        loose = self._open_fds() - self._spared() - self.fds() - set(self._suspects)
        # The tables come last: what was entered or retired meanwhile is in them.
        loose -= self._table_fds()
        if not loose:
            return
        epoch = lib.worker_table_new_epoch(self._tables.workers)
        for fd in loose:
            try:
                self._suspects[fd] = Suspect(os.dup(fd), epoch)
            except OSError:
                continue  # closed meanwhile

    def _try(self, fd: int) -> bool:
        """Decide about one suspect, if that is possible by now; True if it was an orphan."""
        suspect = self._suspects[fd]
        suspect.looks += 1
        is_same = lib.descriptors_same(fd, suspect.duplicate)
        suspect.cleared |= self._not_holding(suspect.epoch)
        is_orphan = is_same and len(suspect.cleared) == self._slots
        if is_same and not is_orphan and suspect.looks < LOOKS:
            return False
        del self._suspects[fd]
        os.close(suspect.duplicate)
        if not is_orphan or fd in self._table_fds():
            return False
        os.close(fd)
        return True

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
        return set(_read_fds(lib.inode_table_fds, self._tables.inodes)) | set(
            _read_fds(lib.file_table_fds, self._tables.files)
        )


def _read_fds(read: Callable[[Any, Any, int], int], table: Any) -> Iterable[int]:
    """All fds of a table, which may grow meanwhile."""
    room = 1024
    while True:
        ret: Any = ffi.new("int32_t[]", room)
        count = read(table, ret, room)
        if count <= room:
            return ret[0:count]  # type: ignore[no-any-return]
        room = count + 1024
