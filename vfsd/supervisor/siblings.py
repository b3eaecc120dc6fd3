# SPDX-License-Identifier: Apache-2.0
"""The processes beside the supervisor: pools, workers, and processes that are still to become a
pool. All of them are descendants of the keeper, which is a child subreaper."""

import os

from vfsd.supervisor.descendants import Process, descendants
from vfsd.supervisor.launcher import Launcher


class Siblings:
    """`keeper`: the pid of the keeper when this supervisor was made."""

    def __init__(self, keeper: int, launcher: Launcher) -> None:
        self._keeper = keeper
        self._launcher = launcher

    def alive(self) -> list[Process]:
        """The siblings that have not ended, without the launcher; none if the keeper is gone, since
        the children of our new parent are not ours."""
        if os.getppid() != self._keeper:
            return []
        spared = (os.getpid(), self._launcher.pid)
        found = descendants(self._keeper)
        return [p for p in found if p.pid not in spared and p.state not in "ZX"]

    def kill(self) -> None:
        for process in self.alive():
            process.kill(self._launcher.kill)
