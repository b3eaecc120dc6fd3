# SPDX-License-Identifier: Apache-2.0
"""What the pools of a sandbox leave to each other: memory that the holder and every pool share.

THEORY

Purpose. A pool may die at any of its instructions, and the next pool must go on where it stopped.

Content. A record of what the pool knows (pool_state.py), which the pool saves before anything
depends on it (saved_record.py). The pid of the newest worker, which the kernel writes while the
worker is created. The deaths that the holder has seen: a log of (pid, wait status) in a ring, and
the number of deaths so far. A pool looks at the deaths from a number on that is in its record, and
saves the next number when it has acted. So a death that a pool has read and not acted on is found
by the next pool. The ring cannot run full of deaths that matter: only a pool creates processes, so
while no pool runs, at most as many can die as there are.

Trust. The memory has no fd, workers unmap it, and /proc is read-only in the sandbox. So a worker
that was taken over cannot write here, and what a pool reads here comes from a pool of ours.

Order. The holder writes a death, then the number, then the eventfd `reaped`; the pool reads the
eventfd first.
"""

import mmap
import os
import struct
from typing import Any, Final

from vfsd.transport.native import ffi
from vfsd.transport.saved_record import SavedRecord

HALF: Final = 1 << 19  # bytes of each half of the record
DEATHS: Final = 1 << 12  # in the ring
_COUNT: Final = struct.Struct("=Q")
_DEATH: Final = struct.Struct("=ii")  # pid, wait status
_NEWBORN_AT: Final = 2 * HALF
_COUNT_AT: Final = _NEWBORN_AT + 8
_RING_AT: Final = _COUNT_AT + _COUNT.size
_BYTES: Final = _RING_AT + DEATHS * _DEATH.size


class PoolMemory:
    """Make this in the holder, before the first pool, and when nothing but the sandbox's own
    processes will inherit it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BYTES)  # shared and anonymous
        self.reaped = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.started = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.record = SavedRecord(self._memory, HALF)

    def fds(self) -> set[int]:
        return {self.reaped, self.started}

    def newborn(self) -> Any:
        """A cffi `int32_t *`: the pid of the newest worker, for clone_sibling()."""
        return ffi.cast("int32_t *", ffi.from_buffer(self._memory)) + _NEWBORN_AT // 4

    def note_death(self, pid: int, status: int) -> None:
        """In the holder: a child was reaped."""
        count = self._count()
        _DEATH.pack_into(self._memory, _RING_AT + count % DEATHS * _DEATH.size, pid, status)
        self._memory[_COUNT_AT : _COUNT_AT + _COUNT.size] = _COUNT.pack(count + 1)
        os.eventfd_write(self.reaped, 1)

    def deaths_since(self, number: int) -> list[tuple[int, int, int]]:
        """The deaths from this number on: number, pid, wait status."""
        count = self._count()
        return [
            (i, *_DEATH.unpack_from(self._memory, _RING_AT + i % DEATHS * _DEATH.size))
            for i in range(max(number, count - DEATHS), count)
        ]

    def _count(self) -> int:
        # A slice is copied by one load; unpack_from() would read byte by byte.
        return int(_COUNT.unpack(self._memory[_COUNT_AT : _COUNT_AT + _COUNT.size])[0])

    def unmap(self) -> None:
        """In a worker: give up all access to this memory."""
        self._memory.close()
