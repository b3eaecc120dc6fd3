# SPDX-License-Identifier: Apache-2.0
"""What a sandbox that serves leaves to the sandbox that takes its place: the packets between them.

A pool sends them, and the first process of the other sandbox receives them (upgrade.py has the
order of everything). The two may be of different versions, so this protocol may be extended and
must not be changed:
  NAMESPACES  with the fds of the root directory, the mount namespace and the user namespace;
  FILES       a number (int32_t) for each fd that comes with the packet: its number in the sandbox
              that sends it. A number that comes a second time replaces the first;
  IMAGE       the size of the session image (uint64_t), with the fd of its segment. The last packet.
"""

import socket
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from vfsd.transport.errors import ProtocolError
from vfsd.transport.passed_fds import close_fds, decode_fds, encode_fds

NAMESPACES, FILES, IMAGE = b"N", b"F", b"I"
FDS_A_PACKET: Final = 253  # as many as the kernel passes
SEND_SECONDS: Final = 5.0  # for which the other sandbox may not read
_SIZE: Final = struct.Struct("=Q")
_PACKET_MAX: Final = 1 + 4 * FDS_A_PACKET
_ROOM: Final = socket.CMSG_SPACE(FDS_A_PACKET * 4)


@dataclass(frozen=True)
class Namespaces:
    """The fds of the root directory and of two namespaces."""

    root: int
    mount: int
    user: int

    def close(self) -> None:
        close_fds([self.root, self.mount, self.user])


@dataclass(frozen=True)
class Image:
    """The segment (fd) with a session image of `size` bytes."""

    fd: int
    size: int


def send_namespaces(sock: int, namespaces: Namespaces) -> None:
    fds = [namespaces.root, namespaces.mount, namespaces.user]
    _send(sock, [(NAMESPACES, fds)])


def send_files(sock: int, fds: Sequence[int], image: Image) -> None:
    """Send all of these, and then the image. OSError if the other end is closed, or if it does not
    read for SEND_SECONDS."""
    batches = (fds[at : at + FDS_A_PACKET] for at in range(0, len(fds), FDS_A_PACKET))
    files = ((FILES + array("i", batch).tobytes(), batch) for batch in batches)
    _send(sock, chain(files, [(IMAGE + _SIZE.pack(image.size), [image.fd])]))


def _send(sock: int, packets: Iterable[tuple[bytes, Sequence[int]]]) -> None:
    with socket.socket(fileno=sock) as end:
        try:
            end.settimeout(SEND_SECONDS)
            for data, fds in packets:
                end.sendmsg([data], encode_fds(fds), socket.MSG_NOSIGNAL)
        finally:
            end.detach()


def receive_namespaces(sock: int) -> Namespaces:
    """Wait for the packet NAMESPACES. OSError or ProtocolError if something else comes."""
    kind, _, fds = _receive(sock)
    if kind != NAMESPACES or len(fds) != 3:
        close_fds(fds)
        raise ProtocolError("a packet of a former sandbox is not NAMESPACES")
    return Namespaces(*fds)


def receive_files(sock: int) -> tuple[dict[int, int], Image]:
    """Wait for the packets FILES and IMAGE; returns the fds by the number that they had."""
    files: dict[int, int] = {}
    while True:
        kind, data, fds = _receive(sock)
        if kind == IMAGE and len(fds) == 1 and len(data) == _SIZE.size:
            return files, Image(fds[0], *_SIZE.unpack(data))
        numbers = array("i")
        numbers.frombytes(data[: len(data) - len(data) % 4])
        if kind != FILES or len(numbers) != len(fds):
            raise ProtocolError("a packet of a former sandbox is neither FILES nor IMAGE")
        close_fds(files[number] for number in numbers if number in files)
        files.update(zip(numbers, fds, strict=True))


def _receive(sock: int) -> tuple[bytes, bytes, list[int]]:
    """Kind, content and fds of the next packet; ConnectionResetError at the end."""
    with socket.socket(fileno=sock) as end:
        try:
            data, ancillary, flags, _ = end.recvmsg(_PACKET_MAX, _ROOM, socket.MSG_CMSG_CLOEXEC)
        finally:
            end.detach()
    fds = decode_fds(ancillary)
    if not data:
        raise ConnectionResetError("the former sandbox has closed its end")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_fds(fds)
        raise ProtocolError("a packet of a former sandbox does not fit")
    return data[:1], data[1:], fds
