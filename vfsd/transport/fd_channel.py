# SPDX-License-Identifier: Apache-2.0
"""The channel between the supervisor and the pool: JSON packets with fds (SCM_RIGHTS).

A SOCK_SEQPACKET pair, so that a packet and its fds come whole or not at all. zmq cannot carry fds;
this carries nothing else than what comes with them. Trust: the supervisor believes nothing from
the pool; both ends bound packet size and fd count and close what they did not ask for.
"""

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from vfsd.transport.control_messages import decode_object
from vfsd.transport.errors import ProtocolError

MAX_PACKET: Final = 65536
MAX_FDS: Final = 128  # a packet; the kernel's own limit is 253
_CREDENTIALS: Final = struct.Struct("=iII")  # pid, uid, gid
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_FDS * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)


@dataclass(frozen=True)
class Packet:
    """One packet. Whoever holds it owns `fds`; `pid` is the sender's as the receiver sees it."""

    content: dict[str, Any]
    fds: tuple[int, ...]
    pid: int | None


class FdChannel:
    """One end of the channel; owns its socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    @classmethod
    def pair(cls) -> tuple["FdChannel", "FdChannel"]:
        """Both ends, the first for the supervisor: it learns the sender's pid with each packet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return cls(ours), cls(theirs)

    @classmethod
    def from_fd(cls, fd: int) -> "FdChannel":
        """The end that was inherited as `fd`, which it owns from now on."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def send(self, content: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one packet; `fds` stay the caller's."""
        data = json.dumps(content, separators=(",", ":")).encode()
        if len(data) > MAX_PACKET or len(fds) > MAX_FDS:
            raise ValueError(f"a packet of {len(data)} bytes and {len(fds)} fds is too large")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)

    def receive(self) -> Packet | None:
        """The next packet; None when the other end is closed. May raise BlockingIOError."""
        flags = socket.MSG_CMSG_CLOEXEC
        data, ancillary, result, _ = self.socket.recvmsg(MAX_PACKET, _ANCILLARY, flags)
        if not data:
            return None
        fds = array.array("i")
        pid = None
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid = _CREDENTIALS.unpack(content)[0]
        try:
            return Packet(_decode(data, result), tuple(fds), pid)
        except ProtocolError:
            for fd in fds:
                os.close(fd)
            raise


def _decode(data: bytes, result: int) -> dict[str, Any]:
    if result & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        raise ProtocolError("a packet on the fd channel is too large")
    return decode_object(data)
