# SPDX-License-Identifier: Apache-2.0
"""The shared segments of one pool: the tables that outlive its workers, and the device state."""

import os
from dataclasses import asdict, dataclass
from typing import Final

from vfsd.transport.native import ffi, lib
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.shared_memory import create_segment

FILE_CAPACITY: Final = 1 << 18
WORKERS_BYTES: Final = ffi.sizeof("struct worker_table")


@dataclass(frozen=True)
class Segments:
    """The shared segments of one pool (fds): device state, tables, ring records, worker table.

    The segment of the device state belongs to the keeper and is given to every pool (device.py);
    the other segments belong to this pool.
    """

    device: int
    inodes: int
    files: int
    rings: int
    workers: int

    @classmethod
    def create(cls, device: int, inodes: int, rings: int | None = None) -> "Segments":
        """`inodes`: how many the guest may know, not counting the root. `rings`: the records of a
        pool that was lost, which the new pool goes on with; a duplicate of that fd is made."""
        return cls(
            device=device,
            inodes=create_segment("vfsd-inodes", lib.inode_table_bytes(inodes + 1)),
            files=create_segment("vfsd-files", lib.file_table_bytes(FILE_CAPACITY)),
            rings=create_segment("vfsd-rings", lib.records_bytes())
            if rings is None
            else os.dup(rings),
            workers=create_segment("vfsd-workers", WORKERS_BYTES),
        )

    def fds(self) -> list[int]:
        return list(asdict(self).values())

    def own_fds(self) -> list[int]:
        """The segments that belong to this pool."""
        return [fd for fd in self.fds() if fd != self.device]

    def tables(self) -> list[int]:
        """The tables from which a session is restored (JobFds.before)."""
        return [self.inodes, self.files, self.workers]

    def close(self) -> None:
        """Close the segments that belong to this pool."""
        close_fds(self.own_fds())
