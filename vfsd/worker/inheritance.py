# SPDX-License-Identifier: Apache-2.0
"""What every pool of a sandbox inherits from the holder, and every worker from its pool."""

from dataclasses import dataclass

from vfsd.transport.fd_channel import FdChannel
from vfsd.transport.job import Job
from vfsd.worker.pool_memory import PoolMemory
from vfsd.worker.sandbox import Sandbox
from vfsd.worker.tables import Tables


@dataclass(frozen=True)
class Inheritance:
    """All of it, made once for a sandbox."""

    job: Job
    sandbox: Sandbox
    tables: Tables
    channel: FdChannel  # to the supervisor
    memory: PoolMemory

    def fds(self) -> frozenset[int]:
        """The fds that stay open as long as the sandbox."""
        sandbox = self.sandbox
        return frozenset(
            {*self.job.fds.kept(), sandbox.root_fd, sandbox.proc_fd, sandbox.oom_score.fd}
            | {*sandbox.handles.sockets, *self.memory.fds(), 0, 1, 2}
        )
