# SPDX-License-Identifier: Apache-2.0
"""The socket by which an operator asks a running daemon for an upgrade.

The socket is in the runtime folder, beside the socket for operators (control_socket.py), so a tool
finds both in the same way. Only root and the user of keeper and supervisor reach the folder (0700).
The supervisor itself has this socket, and not the control process, which may die before the outcome
is known.

A request is one JSON packet, and so is its answer: {"dry_run": BOOL, "seconds": NUMBER}, {"ok":
BOOL, "text": TEXT}. One request is carried out at a time.
"""

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vfsd.supervisor.event_loop import EventLoop
from vfsd.transport.operator_protocol import UPGRADE_SOCKET_NAME

REQUEST_MAX: Final = 4096
SECONDS_MAX: Final = 3600.0


@dataclass(frozen=True)
class Request:
    """`seconds`: the time for the new version to get ready."""

    connection: socket.socket
    is_dry_run: bool
    seconds: float


class UpgradeRequests:
    """`pending`: the request that is being carried out, or is to be."""

    def __init__(self, loop: EventLoop) -> None:
        self.pending: Request | None = None
        self._loop = loop

    def listen(self) -> None:
        """Accept requests from now on. OSError if the socket cannot be made."""
        Path(UPGRADE_SOCKET_NAME).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(UPGRADE_SOCKET_NAME)
        self._listener.listen(4)
        self._listener.setblocking(False)
        self._loop.register(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._loop.register(connection.fileno(), self._reader(connection))

    def _reader(self, connection: socket.socket) -> Callable[[], None]:
        return lambda: self._read(connection)

    def _read(self, connection: socket.socket) -> None:
        self._loop.unregister(connection.fileno())
        try:
            content = json.loads(connection.recv(REQUEST_MAX))
            seconds = min(max(float(content["seconds"]), 0.0), SECONDS_MAX)
            request = Request(connection, content["dry_run"] is True, seconds)
        except (OSError, ValueError, LookupError, TypeError):
            connection.close()
            return
        if self.pending:
            _answer(connection, False, "another upgrade is under way")
        else:
            self.pending = request

    def answer(self, is_done: bool, text: str) -> None:
        """Answer the pending request."""
        request, self.pending = self.pending, None
        if request:
            _answer(request.connection, is_done, text)


def _answer(connection: socket.socket, is_done: bool, text: str) -> None:
    with suppress(OSError):  # the operator does not wait any more
        connection.send(json.dumps({"ok": is_done, "text": text}).encode())
    connection.close()
