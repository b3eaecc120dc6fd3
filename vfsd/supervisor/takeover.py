# SPDX-License-Identifier: Apache-2.0
"""The new version's side of an upgrade: its supervisor takes the VM.

upgrade.py has the protocol. Until GO has come, nothing here may touch what the other version serves
with; if the other version is gone or does not want this daemon any more, the daemon ends.
"""

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vfsd import __version__
from vfsd.supervisor.former import Former
from vfsd.supervisor.session_transfer import renumbered
from vfsd.supervisor.version_link import VersionPacket, receive, send
from vfsd.transport.native import lib


class NotNeededError(Exception):
    """The other version goes on serving, or is gone."""


@dataclass(frozen=True)
class SavedVm:
    """The VM that the other version serves. `session`: as Session.snapshot(), with our fds."""

    frontend: int
    session: dict[str, Any]
    has_spoken: bool
    spawned: frozenset[int]
    ended: frozenset[int]


@dataclass(frozen=True)
class Takeover:
    """The other version as keeper and supervisor of this daemon see it. `socket`: to its
    supervisor. `heritage`, `rings`: the fds of Former; None if no VM is connected. `log_level`: the
    level that an operator has set there, or that of our options."""

    socket: int
    user: int
    heritage: int | None
    rings: int | None
    log_level: str

    def fds(self) -> frozenset[int]:
        return frozenset(fd for fd in (self.socket, self.heritage, self.rings) if fd is not None)

    def former(self) -> Former | None:
        if self.heritage is None or self.rings is None:
            return None
        return Former(self.rings, self.heritage, self.report_prepared)

    def report_prepared(self) -> None:
        with suppress(OSError):  # receive_vm() finds out
            send(self.socket, "prepared", version=__version__, tables=lib.VFSD_TABLES_LAYOUT)

    def receive_vm(self) -> SavedVm | None:
        """Wait for the VM; None if none is connected. NotNeededError."""
        packet = self._next("vm")
        session, numbers = packet.content["session"], packet.content["numbers"]
        fds = list(packet.fds)
        while len(fds) < len(numbers):
            fds += self._next("fds").fds
        if session is None:
            return None
        ours = dict(zip(numbers, fds, strict=True))
        return SavedVm(
            frontend=ours[packet.content["frontend"]],
            session=renumbered(session, ours),
            has_spoken=packet.content["has_spoken"],
            spawned=frozenset(packet.content["spawned"]),
            ended=frozenset(packet.content["ended"]),
        )

    def await_go(self) -> tuple[list[str], int]:
        """Report that everything is taken, and wait until the other version has ended its service.
        Return: the names by which it has stored fds (--keep-state), and the last label that it has
        given. The packet GO stays on the socket, for another supervisor. A sandbox that dies during
        the wait is noticed later, when this daemon serves: the other version waits for SERVING as
        long as this daemon lives."""
        with suppress(OSError):
            send(self.socket, "taken")
        packet = receive(self.socket, socket.MSG_PEEK)
        if packet is None or packet.kind != "go":
            raise NotNeededError
        with suppress(OSError):  # that supervisor has died; its successor reads this
            send(self.socket, "serving")
        return [str(name) for name in packet.content["names"]], int(packet.content["label"])

    def fail(self, error: str) -> None:
        report_failure(self.socket, error)

    def _next(self, kind: str) -> VersionPacket:
        packet = receive(self.socket)
        if packet is None or packet.kind != kind:
            raise NotNeededError
        return packet


def report_failure(sock: int, error: str) -> None:
    """Report to the other version why this daemon cannot take its place."""
    with suppress(OSError):
        send(sock, "failed", error=error)
