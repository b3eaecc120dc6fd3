# SPDX-License-Identifier: Apache-2.0
"""The socket for operators: made by the process that starts the daemon, before it gives up its
privileges, and held by keeper and supervisor.

The socket is in the runtime folder, which belongs to the supervisor's user id and is closed to
other users. Tools find the folder as the working directory of the keeper (vfsd/control/), so no
list of instances can be out of date.
"""

import os
import socket
import struct
from pathlib import Path
from typing import Final

from vfsd.transport.operator_protocol import SOCKET_NAME
from vfsd.transport.socket_path import addressed

BACKLOG: Final = 16
_PEER: Final = struct.Struct("=iII")  # struct ucred


class ControlSocket:
    """The listening socket. `owner`: the user who has started the daemon, and may operate it, as
    root may."""

    def __init__(self, sock: socket.socket, owner: int) -> None:
        self.socket = sock
        self._owner = owner

    @classmethod
    def create(cls, folder: str) -> "ControlSocket":
        """Listen in the runtime folder. OSError if that is not possible."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            with addressed(str(Path(folder) / SOCKET_NAME)) as address:
                sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        finally:
            os.umask(mask)
        return cls(sock, os.geteuid())

    def accept(self) -> socket.socket | None:
        """The next client; None if there is none, or if it may not operate this daemon. Raises
        OSError if there are no more fds."""
        try:
            connection, _ = self.socket.accept()
        except BlockingIOError:
            return None
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        if _PEER.unpack(peer)[1] not in (0, self._owner):
            connection.close()
            return None
        connection.setblocking(False)
        return connection
