# SPDX-License-Identifier: Apache-2.0
"""Notifies systemd about the service: datagrams (sd_notify(3)), without a library."""

import contextlib
import os
import socket


class Notifier:
    """Sends messages to systemd. Without NOTIFY_SOCKET they have no effect.

    The socket is connected at the start, because the keeper may not connect to a path later.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        address = os.environ.get("NOTIFY_SOCKET", "")
        if address.startswith("@"):
            address = "\0" + address[1:]
        with contextlib.suppress(OSError):
            if address:
                self._socket.connect(address)

    def ready(self) -> None:
        """A VMM can connect."""
        self._send("READY=1")

    def name_main(self) -> None:
        """This process is the main process of the service from now on."""
        self._send(f"MAINPID={os.getpid()}")

    def _send(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the share is served even if systemd is not notified
            self._socket.send(text.encode())

    def close(self) -> None:
        self._socket.close()
