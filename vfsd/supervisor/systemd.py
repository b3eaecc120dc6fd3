# SPDX-License-Identifier: Apache-2.0
"""Telling systemd that the service is ready: one datagram (sd_notify(3)), no library."""

import contextlib
import os
import socket


def notify_ready() -> None:
    """Say that a VMM can connect now; nothing happens where nobody asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as sock, contextlib.suppress(OSError):
        sock.sendto(b"READY=1", address)  # if it fails, that is no reason not to serve
