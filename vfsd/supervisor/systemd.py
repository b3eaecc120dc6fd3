# SPDX-License-Identifier: Apache-2.0
"""Messages to systemd: one datagram each (sd_notify(3)), without a library."""

import contextlib
import os
import select
import socket
from collections.abc import Sequence
from time import monotonic
from typing import Final, Self

from vfsd.transport.passed_fds import encode_fds
from vfsd.transport.socket_path import addressed

FULL_SECONDS: Final = 1.0  # how long a message waits for room in the queue of the service manager
PATIENCE_SECONDS: Final = 30.0  # after a wait in vain, in which nothing waits for the manager


class ServiceManager:
    """The service manager at a socket. Without an address no method has an effect, and the share is
    served even if a message cannot be sent.

    The socket is connected at the start, because keeper and supervisor may not connect to a path
    later.

    The VMM, and with it the guest, waits for a supervisor that waits here. So if the service
    manager does not read its messages (SIGSTOP), only one message in PATIENCE_SECONDS waits.
    """

    def __init__(self, address: str) -> None:
        self._impatient_until = 0.0  # monotonic seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with contextlib.suppress(OSError):
            if address.startswith("@"):
                self._socket.connect("\0" + address[1:])
            elif address:
                with addressed(address) as path:
                    self._socket.connect(path)

    @classmethod
    def of_environment(cls) -> Self:
        """The service manager that has started this process, if one has (NOTIFY_SOCKET)."""
        return cls(os.environ.get("NOTIFY_SOCKET", ""))

    def report_ready(self) -> None:
        """A VMM can connect."""
        self._send("READY=1")

    def name_main(self) -> None:
        """This process is the main process of the service from now on."""
        self._send(f"MAINPID={os.getpid()}")

    def store_fd(self, name: str, fd: int) -> None:
        """Have systemd keep a copy of `fd` for the next start of the service."""
        self._send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", [fd])

    def remove_fd(self, name: str) -> None:
        """Have systemd close the fd that it keeps under this name. No effect if there is none."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def await_messages(self, seconds: float) -> None:
        """Wait until systemd has read every message that was sent, for `seconds` at most."""
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            self._send("BARRIER=1", [write])
        finally:
            os.close(write)
        self._wait(read, 0, seconds)  # POLLHUP: no copy of `write` is left
        os.close(read)

    def _send(self, text: str, fds: Sequence[int] = ()) -> None:
        with contextlib.suppress(OSError):
            try:
                self._socket.sendmsg([text.encode()], encode_fds(fds))
            except BlockingIOError:  # the queue of a unix datagram socket is short
                self._wait(self._socket.fileno(), select.POLLOUT, FULL_SECONDS)
                self._socket.sendmsg([text.encode()], encode_fds(fds))

    def _wait(self, fd: int, event: int, seconds: float) -> None:
        """Wait for an event of `fd`, unless a wait was in vain lately."""
        if monotonic() < self._impatient_until:
            return
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(seconds * 1000):
            self._impatient_until = monotonic() + PATIENCE_SECONDS

    def close(self) -> None:
        self._socket.close()
