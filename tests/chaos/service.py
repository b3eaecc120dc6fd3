# SPDX-License-Identifier: Apache-2.0
"""A daemon that is a service of a real systemd, which starts the daemon again when all of its
processes have ended. The guest goes on: systemd keeps the fds of the VM."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tests.system.booted import Booted
from tests.waiting import wait_until

from .memory_group import MemoryGroup
from .share import Share

CONFIG: Final = """
shared-dir = "/srv/{name}"
xattr = true
flock = true
posix-lock = true
log-level = "debug"
"""


class ServiceShare(Share):
    """As Share. The daemon is virtiofsd@NAME.service as it is shipped."""

    def _launch(self, options: Sequence[str], group: MemoryGroup | None) -> Path:
        assert not options, "the options of a service are in its file"
        assert not group, "a service has a control group of its own"
        folder = self.folder / "booted"
        folder.mkdir()
        self.folder.chmod(0o755)  # systemd's services have other users
        self._unit = f"virtiofsd@{self.name}.service"
        self._booted = self._stack.enter_context(Booted(folder))
        self._booted.install()
        (self._booted.etc / f"vfsd/{self.name}.toml").write_text(CONFIG.format(name=self.name))
        self.host = self._booted.srv / self.name
        self.host.mkdir()
        self._booted.systemctl("daemon-reload")
        self._booted.systemctl("start", self._unit)
        self._stack.callback(self._stop)
        return self._booted.path(f"/run/vfsd/{self.name}/sock")

    def _stop(self) -> None:
        self._booted.run("systemctl", "stop", self._unit)
        self._booted.run("systemctl", "kill", "--signal=KILL", self._unit)

    def is_served(self) -> bool:
        """Is the service running, or in a restart, which passes through several states?"""
        return self._booted.show(self._unit, "ActiveState") != "failed"

    @property
    def ends(self) -> Mapping[str, Callable[[], None]]:
        return {
            "control group is killed": partial(self._end_with, "kill", "--signal=KILL"),
            "service is restarted": partial(self._end_with, "restart"),
        }

    def _end_with(self, *verb: str) -> None:
        """End all processes, and wait until the service is running again."""
        before = self._booted.show(self._unit, "InvocationID")
        self._booted.run("systemctl", *verb, self._unit)
        wait_until(lambda: self._is_running_again(before), what="the service is running again")

    def _is_running_again(self, before: str) -> bool:
        return (
            self._booted.show(self._unit, "InvocationID") != before
            and self._booted.show(self._unit, "ActiveState") == "active"
        )

    def output(self) -> bytes:
        return self._booted.journal(self._unit).encode()
