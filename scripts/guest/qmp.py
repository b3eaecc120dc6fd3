# SPDX-License-Identifier: Apache-2.0
"""QEMU's control protocol (QMP, docs/interop/qmp-spec.rst) on a connected socket."""

import json
import socket
import time
from collections.abc import Mapping
from typing import Any

ANSWER_SECONDS = 60.0  # QEMU's main loop waits for guests and back-ends; the machine may be loaded


class QmpError(Exception):
    """QEMU refused a command with this text, or did not answer."""


class Qmp:
    """The client's end; owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = b""
        self._events: list[str] = []
        self._is_negotiated = False

    def close(self) -> None:
        self._socket.close()

    def ask(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """Execute a command and return its result."""
        if not self._is_negotiated:
            self._is_negotiated = True
            self.ask("qmp_capabilities", {})
        message = {"execute": command, "arguments": dict(arguments)}
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            answer = self._next(deadline)
            if "error" in answer:
                raise QmpError(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]

    def wait_event(self, name: str) -> None:
        """Wait for an event; each event is returned once."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while name not in self._events:
            self._next(deadline)
        self._events.remove(name)

    def _next(self, deadline: float) -> dict[str, Any]:
        """Return the next message; events are also recorded."""
        while b"\n" not in self._received:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                raise QmpError("QEMU does not answer") from None
            if not data:
                raise QmpError("QEMU has ended")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self._events.append(message["event"])
        return message
