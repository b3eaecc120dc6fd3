# SPDX-License-Identifier: Apache-2.0
"""A mount whose requests are counted: the bridges are threads of this process (bridge.py)."""

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vfsd.frontend.bridge import Bridges, Shape
from vfsd.frontend.fuse_mount import FuseMount
from vfsd.frontend.vmm import Vmm
from vfsd.transport.errors import OperatorError

QUEUE_SIZE: Final = 1024  # room for requests of 1 MiB


@contextmanager
def counted_mount(vmm: Vmm, target: str, queues: int = 1) -> Iterator[Bridges]:
    """Mount the share of a back-end on `target`. This process must not look at anything below
    `target`: its own threads would have to answer."""
    vmm.negotiate()
    vmm.check_queues(queues)
    shape = Shape(queues, QUEUE_SIZE)
    with Bridges(vmm, shape) as bridges:
        vmm.start(bridges.memory, bridges.vrings)
        with FuseMount("vfsd-bench", target, queues) as fuse:
            bridges.start(fuse.fds)
            try:
                _wait_ready(bridges, vmm.fileno())
                yield bridges
            finally:
                fuse.unmount(lazy=False) or fuse.unmount(lazy=True)
                bridges.stop()
                fuse.abort()
        bridges.end_session()
        vmm.stop()


def _wait_ready(bridges: Bridges, vmm_fd: int) -> None:
    """Wait for the answer to FUSE_INIT."""
    ready, _, _ = select.select([bridges.ready_fd, bridges.ended_fd, vmm_fd], [], [])
    if bridges.ready_fd not in ready:
        reasons = [end.text for end in bridges.ends if end.text] or ["it has closed the connection"]
        raise OperatorError(f"the back-end does not serve the mount: {reasons[0]}")
    os.eventfd_read(bridges.ready_fd)
