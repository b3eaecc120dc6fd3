# SPDX-License-Identifier: Apache-2.0
"""The processes of all sandboxes, and those that are still to become a sandbox. All of them are in
the session of the launcher (succession.py)."""

from vfsd.supervisor.descendants import Process
from vfsd.supervisor.launcher import Launcher


class Siblings:
    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def alive(self) -> list[Process]:
        """Those that have not ended; none if the launcher is gone."""
        return self._launcher.sandboxed()

    def kill(self) -> None:
        for process in self.alive():
            process.kill(self._launcher.kill)
