# SPDX-License-Identifier: Apache-2.0
"""The socket of a worker slot in the runtime folder. The supervisor makes it, the slot's workers
inherit it, one after the other, and the supervisor connects to it."""

import socket
from pathlib import Path

from vfsd.transport.errors import OperatorError


def listen(path: Path) -> tuple[str, int]:
    """A listening unix socket for one worker slot: its path and fd."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(str(path))
            sock.listen(8)
        except OSError as error:
            raise OperatorError(
                f"cannot make the socket '{path}' for a worker: {error.strerror or error};"
                " point TMPDIR at another folder"
            ) from None
        return str(path), sock.detach()
