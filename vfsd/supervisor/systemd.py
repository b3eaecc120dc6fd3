# SPDX-License-Identifier: Apache-2.0
"""Notifies systemd that the service is ready: one datagram (sd_notify(3)), without a library."""

import contextlib
import os
import socket


class ReadyNotifier:
    """Notifies systemd that a VMM can connect. Without NOTIFY_SOCKET notify() has no effect.

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

    def notify(self) -> None:
        with contextlib.suppress(OSError):  # the share is served even if systemd is not notified
            self._socket.send(b"READY=1")

    def close(self) -> None:
        self._socket.close()
