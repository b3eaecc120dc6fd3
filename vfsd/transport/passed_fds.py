# SPDX-License-Identifier: Apache-2.0
"""fds that travel with the bytes on a unix socket, as ancillary data (SCM_RIGHTS).

Python's socket.send_fds() and socket.recv_fds() ignore the flags that they are given (3.11):
MSG_DONTWAIT and MSG_CMSG_CLOEXEC.
"""

import array
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

ROOM: Final = socket.CMSG_SPACE(253 * 4)  # bytes, for the 253 fds that the kernel passes at most
Ancillary = tuple[int, int, Any]  # level, kind, content


def encode_fds(fds: Sequence[int]) -> list[Ancillary]:
    """The argument of sendmsg() that passes `fds`; the caller keeps them."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def decode_fds(ancillary: Iterable[Ancillary]) -> list[int]:
    """The fds in the ancillary data of recvmsg(); the caller owns them."""
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return list(fds)


def close_fds(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
