# SPDX-License-Identifier: Apache-2.0
"""The supervisor's eye on processes that nothing replaces: the launcher, which has the privileges,
and the state holder, which only a daemon that starts creates."""

from typing import Final

from vfsd.supervisor.boot import Boot
from vfsd.supervisor.descendants import has_ended
from vfsd.supervisor.event_loop import EventLoop

LAUNCHER_DIED: Final = (
    "the launcher died: the share goes on until its VMM goes away, but no other VMM can be served;"
    " start virtiofsd again"
)
HOLDER_DIED: Final = (
    "the state holder died: the share goes on, but from now on the VM does not outlive the daemon;"
    " start virtiofsd again when the VM has ended"
)


def watch_irreplaceable(boot: Boot, loop: EventLoop) -> None:
    """Log an error when one of them ends, unless an earlier supervisor has logged the error."""
    _watch(boot, loop, boot.launcher.pidfd, LAUNCHER_DIED)
    if boot.holder is not None:
        _watch(boot, loop, boot.holder, HOLDER_DIED)


def _watch(boot: Boot, loop: EventLoop, fd: int, text: str) -> None:
    if has_ended(fd):
        return

    def lost() -> None:
        loop.unregister(fd)
        boot.log.write("error", text)

    loop.register(fd, lost)
