# SPDX-License-Identifier: Apache-2.0
"""The channel between the supervisor and the pool: JSON packets with fds (SCM_RIGHTS).

A SOCK_SEQPACKET pair, so that a packet and its fds arrive whole or not at all. zmq cannot carry
fds, so messages with fds, and only the messages that belong to them, use this channel. Trust: the
supervisor believes nothing that the pool says. Both ends bound the size of a packet. fds go to the
pool only: the supervisor's end has no room for them, so the kernel drops them and does not install
them. (Closing an fd can wait for the server of its file, so the supervisor must not hold, even
briefly, an fd that the sandbox has chosen.)
"""

import json
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vfsd.transport.control_messages import MAX_MESSAGE, decode_object
from vfsd.transport.errors import ProtocolError
from vfsd.transport.passed_fds import Ancillary, close_fds, decode_fds, encode_fds

MAX_PACKET: Final = MAX_MESSAGE
MAX_FDS: Final = 128  # in a packet; the kernel's own limit is 253
_CREDENTIALS: Final = struct.Struct("=iII")  # pid, uid, gid
_ROOM_FOR_FDS: Final = socket.CMSG_SPACE(MAX_FDS * 4)
_ROOM_FOR_PID: Final = socket.CMSG_SPACE(_CREDENTIALS.size)


@dataclass(frozen=True)
class Packet:
    """One packet. Its holder owns `fds`; `pid` is the sender's, as the receiver sees it."""

    content: dict[str, Any]
    fds: tuple[int, ...]
    pid: int | None


class FdChannel:
    """One end of the channel; owns its socket. `room`: bytes of ancillary data that this end
    accepts."""

    def __init__(self, sock: socket.socket, room: int = _ROOM_FOR_FDS) -> None:
        self.socket = sock
        self._room = room

    @classmethod
    def pair(cls) -> tuple["FdChannel", "FdChannel"]:
        """Both ends. The first is for the supervisor: the kernel adds the sender's pid to each
        packet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return cls(ours, _ROOM_FOR_PID), cls(theirs)

    @classmethod
    def from_fd(cls, fd: int) -> "FdChannel":
        """The pool's end, from the inherited `fd`, which the channel owns from now on."""
        return cls(socket.socket(fileno=fd))

    @classmethod
    def of_supervisor(cls, fd: int) -> "FdChannel":
        """The supervisor's end, taken over from a supervisor that died."""
        return cls(socket.socket(fileno=fd), _ROOM_FOR_PID)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def send(self, content: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one packet; the caller keeps `fds`."""
        data = json.dumps(content, separators=(",", ":")).encode()
        if len(data) > MAX_PACKET or len(fds) > MAX_FDS:
            raise ValueError(f"a packet of {len(data)} bytes and {len(fds)} fds is too large")
        self.socket.sendmsg([data], encode_fds(fds), socket.MSG_NOSIGNAL)

    def receive(self) -> Packet | None:
        """The next packet; None when the other end is closed, or sent an empty packet.

        Raises ProtocolError, or OSError (BlockingIOError: no packet is there yet). No fd stays open
        after an exception.
        """
        flags = socket.MSG_CMSG_CLOEXEC
        data, ancillary, result, _ = self.socket.recvmsg(MAX_PACKET, self._room, flags)
        fds, packet = decode_fds(ancillary), None
        try:
            if data:
                packet = Packet(_decode(data, result), tuple(fds), _sender(ancillary))
        finally:
            if packet is None:
                close_fds(fds)
        return packet


def _sender(ancillary: Iterable[Ancillary]) -> int | None:
    """The sender's pid, if the kernel was asked to add it."""
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(content)[0])
    return None


def _decode(data: bytes, result: int) -> dict[str, Any]:
    if result & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        raise ProtocolError("a packet on the fd channel is too large, or has too many fds")
    return decode_object(data)
