# SPDX-License-Identifier: Apache-2.0
"""Telling systemd that the service is ready: one datagram (sd_notify(3)), no library."""

import contextlib
import os
import socket


class ReadyNotifier:
    """Where to say that a VMM can connect; nothing happens where nobody asked to be told.

    Its socket is connected at the start: the keeper may not reach systemd by path later.
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
        with contextlib.suppress(OSError):  # if it fails, that is no reason not to serve
            self._socket.send(b"READY=1")

    def close(self) -> None:
        self._socket.close()
