# SPDX-License-Identifier: Apache-2.0
"""The supervisor's eye on the launcher, which cannot be replaced: it has the privileges."""

from typing import Final

from vfsd.supervisor.descendants import has_ended
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.log_collector import LogCollector

LAUNCHER_DIED: Final = (
    "the launcher died: the share goes on until its VMM goes away, but no other VMM can be served;"
    " start virtiofsd again"
)


def watch_launcher(launcher: Launcher, loop: EventLoop, log: LogCollector) -> None:
    """Log an error when the launcher ends, unless an earlier supervisor has logged the error."""
    if has_ended(launcher.pidfd):
        return

    def lost() -> None:
        loop.unregister(launcher.pidfd)
        log.write("error", LAUNCHER_DIED)

    loop.register(launcher.pidfd, lost)
