# SPDX-License-Identifier: Apache-2.0
"""The supervisor's eye on the state holder, which nothing replaces: only a daemon that starts
creates a state holder."""

from typing import Final

from vfsd.supervisor.boot import Boot
from vfsd.supervisor.descendants import has_ended
from vfsd.supervisor.event_loop import EventLoop

HOLDER_DIED: Final = (
    "the state holder died: the share goes on, but from now on the VM does not outlive the daemon;"
    " start virtiofsd again when the VM has ended"
)


def watch_state_holder(boot: Boot, loop: EventLoop) -> None:
    """Log an error when the state holder ends, unless an earlier supervisor has logged that."""
    fd = boot.holder
    if fd is None or has_ended(fd):
        return

    def lost() -> None:
        loop.unregister(fd)
        boot.log.write("error", HOLDER_DIED)

    loop.register(fd, lost)
