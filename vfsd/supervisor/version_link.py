# SPDX-License-Identifier: Apache-2.0
"""The socket between two versions of the daemon during an upgrade: JSON packets with fds.

The order of the packets, and what happens if a process dies, is in upgrade.py. Either version may
be the newer one, so a packet may get fields, and none that is here may change its meaning.
"""

import json
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from vfsd.transport.errors import ProtocolError
from vfsd.transport.passed_fds import Ancillary, close_fds, decode_fds, encode_fds

PACKET_MAX: Final = 1 << 17
FDS_MAX: Final = 250  # in a packet
_ROOM: Final = socket.CMSG_SPACE(253 * 4)


class VersionPacket(NamedTuple):
    """The holder of a packet owns its fds."""

    kind: str
    content: dict[str, Any]
    fds: tuple[int, ...]


def send(fd: int, kind: str, fds: Sequence[int] = (), **content: Any) -> None:
    """OSError if the other version is gone, or does not read for long."""
    sock = socket.socket(fileno=fd)
    try:
        sock.settimeout(5.0)
        sock.sendmsg([json.dumps({"kind": kind, **content}).encode()], encode_fds(fds))
    finally:
        sock.detach()


def receive(fd: int, flags: int = 0) -> VersionPacket | None:
    """The next packet, which is waited for; None if the other version is gone. With MSG_PEEK the
    packet stays, and its fds, of which there must be none, stay as well."""
    sock = socket.socket(fileno=fd)
    try:
        sock.settimeout(None)
        try:
            data, ancillary, result = _receive(sock, flags)
        except ConnectionResetError:  # the other end was closed with a packet unread
            data, ancillary, result = _receive(sock, flags)  # what it has sent can be read still
    finally:
        sock.detach()
    fds = decode_fds(ancillary)
    try:
        return _decode(data, result, fds) if data else None
    except ProtocolError:
        close_fds(fds)
        raise


def _receive(sock: socket.socket, flags: int) -> tuple[bytes, list[Ancillary], int]:
    data, ancillary, result, _ = sock.recvmsg(PACKET_MAX, _ROOM, socket.MSG_CMSG_CLOEXEC | flags)
    return data, ancillary, result


def _decode(data: bytes, result: int, fds: Sequence[int]) -> VersionPacket:
    if result & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise ProtocolError("a packet of the other version does not fit")
    try:
        content = json.loads(data)
        return VersionPacket(str(content.pop("kind")), content, tuple(fds))
    except (ValueError, LookupError, AttributeError, TypeError):
        raise ProtocolError("a packet of the other version cannot be read") from None
