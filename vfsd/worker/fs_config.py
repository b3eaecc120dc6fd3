# SPDX-License-Identifier: Apache-2.0
"""What the file system of a process is set up from: struct fs_config (fs_config.h)."""

from typing import Any

from vfsd.transport.job import Job
from vfsd.worker import policy
from vfsd.worker.sandbox import Sandbox
from vfsd.worker.tables import Tables


def fill(
    config: Any, job: Job, sandbox: Sandbox, tables: Tables, slot: int, proc_self_fd: int
) -> None:
    """Fill a struct fs_config for the process in worker slot `slot`."""
    config.slot = slot
    config.root_fd = sandbox.root_fd
    config.proc_self_fd = proc_self_fd
    config.handles_fd = sandbox.handles.socket_of(slot)
    config.workers, config.inodes, config.files = tables.workers, tables.inodes, tables.files
    policy.fill(config.policy, job.fs, sandbox.handles.outcome)
