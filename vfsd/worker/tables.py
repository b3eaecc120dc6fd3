# SPDX-License-Identifier: Apache-2.0
"""The shared segments, as the pool and its workers map them."""

import os
from dataclasses import dataclass
from typing import Any

from vfsd.transport.job import Job
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.shared_memory import map_segment
from vfsd.worker.handles import Outcome
from vfsd.worker.sandbox import IsolationError, Sandbox, attempt


@dataclass(frozen=True)
class Tables:
    """cffi pointers: struct device_state (mapped read-only), struct worker_table, and three opaque
    tables."""

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
            map_segment(fds.rings, lib.records_bytes()),
        )

    def lay_out(self, job: Job, sandbox: Sandbox) -> None:
        """Prepare the zeroed tables, once, before the first worker.

        IsolationError if inodes cannot be held in the way that stage "handles" has decided on.
        """
        root_fd = sandbox.root_fd
        lib.worker_table_init(self.workers, job.slots)
        self.workers.staging = b".vfsd-" + os.urandom(16).hex().encode()
        check(lib.inode_table_init(self.inodes, job.inode_capacity, root_fd))
        lib.inode_table_number_from(self.inodes, int.from_bytes(os.urandom(4)))
        lib.file_table_init(self.files, job.file_capacity)
        outcome = sandbox.handles.outcome
        hint = "try --inode-file-handles=never"
        if outcome.is_raw and not lib.mount_handles_try(self.inodes, root_fd):
            raise IsolationError(f"file handles cannot be opened any more; {hint}")
        if outcome is Outcome.SIGNED:
            fd = sandbox.handles.socket_of(0)
            attempt(
                "reach the broker of file handles",
                hint,
                lambda: check(lib.mount_handles_expect_signatures(self.inodes, root_fd, fd)),
            )

    def bury(self, slot: int) -> None:
        """Release what the dead worker of `slot` held: its locks, and its claim to retired
        entries."""
        lib.inode_table_bury(self.inodes, slot)
        lib.file_table_bury(self.files, slot)
        lib.worker_table_bury(self.workers, slot)
