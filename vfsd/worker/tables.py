# SPDX-License-Identifier: Apache-2.0
"""The shared segments as the pool and its workers have them mapped."""

import os
from dataclasses import dataclass
from typing import Any

from vfsd.transport.native import check, ffi, lib
from vfsd.transport.shared_memory import map_segment
from vfsd.worker.isolation import IsolationError
from vfsd.worker.job import Job


@dataclass(frozen=True)
class Tables:
    """cffi pointers: struct device_state (read only), struct worker_table, three opaque tables."""

    device: Any
    workers: Any
    inodes: Any
    files: Any
    records: Any

    @classmethod
    def map(cls, job: Job) -> "Tables":
        """Map the job's segments; OSError if one of them is too short or not sealed."""
        fds = job.fds
        state, workers = ffi.sizeof("struct device_state"), ffi.sizeof("struct worker_table")
        return cls(
            ffi.cast("struct device_state *", map_segment(fds.device, state, writable=False)),
            ffi.cast("struct worker_table *", map_segment(fds.workers, workers)),
            map_segment(fds.inodes, lib.inode_table_bytes(job.inode_capacity)),
            map_segment(fds.files, lib.file_table_bytes(job.file_capacity)),
            map_segment(fds.rings, lib.ring_records_bytes()),
        )

    def lay_out(self, job: Job, root_fd: int) -> list[str]:
        """Prepare the zeroed tables, once, before the first worker; returns notes for the log.

        IsolationError if inodes must be held by file handles and cannot be.
        """
        lib.worker_table_init(self.workers, job.slots)
        self.workers.staging = b".vfsd-" + os.urandom(16).hex().encode()
        check(lib.inode_table_init(self.inodes, job.inode_capacity, root_fd))
        lib.file_table_init(self.files, job.file_capacity)
        if not job.uses_file_handles or lib.inode_table_try_handles(self.inodes, root_fd):
            return []
        why = (
            "files cannot be held by handles here: the file system has none, "
            "or CAP_DAC_READ_SEARCH is missing"
        )
        if job.fs.inode_file_handles == "mandatory":
            raise IsolationError(f"{why}; try --inode-file-handles=prefer, or run as root")
        return [f"{why}; each inode that the guest knows holds an fd"]

    def bury(self, slot: int) -> None:
        """Release what the dead worker of `slot` held: locks, and its claim to old entries."""
        lib.inode_table_bury(self.inodes, slot)
        lib.file_table_bury(self.files, slot)
        lib.worker_table_bury(self.workers, slot)
