# SPDX-License-Identifier: Apache-2.0
"""The supervisor's half of a ZMTP 3 connection: bytes in, messages out. Does no I/O.

THEORY

Purpose. The other half is libzmq in a worker, and that worker may have been taken over by its
guest. So the code that reads the worker's bytes is written in a memory-safe language, is small, and
accepts only what one of our workers sends; everything else is a ProtocolError. The process that
answers operators (supervisor/control_server.py) reads its clients with the same code.

What is accepted (RFC 23 and 37: NULL mechanism), in this order: a greeting; one READY command with
a Socket-Type that the caller accepts (DEALER from a worker; DEALER or SUB from a client of an
operator); then messages of one frame each, of at most MAX_MESSAGE bytes, in the shorter of the two
encodings of their length. Messages of several parts (the MORE flag), every other command (our
workers and clients send no heartbeats: ZMQ_HEARTBEAT_IVL is not set), other mechanisms and unknown
flags are refused. A subscription is a message in ZMTP 3.0, and a command in ZMTP 3.1, so a SUB must
be greeted with greeting(0).

Memory. The caller takes every complete message before it feeds more bytes. After that the buffer
holds at most one incomplete frame, so a connection never holds more than FRAME_BYTES plus the bytes
that are fed at once.
"""

import struct
from collections.abc import Collection
from typing import Final

from vfsd.transport.control_messages import MAX_MESSAGE
from vfsd.transport.errors import ProtocolError

GREETING_BYTES: Final = 64
_MECHANISM: Final = b"NULL".ljust(20, b"\0")
_MAJOR: Final = 3
_GREETING: Final = struct.Struct(">B8sBBB20sB31s")
_LONG: Final = struct.Struct(">BQ")
_MORE, _LONG_FLAG, _COMMAND = 1, 2, 4
_SHORT_BYTES: Final = 255  # the longest body whose length is encoded in one byte
FRAME_BYTES: Final = _LONG.size + MAX_MESSAGE
_SOCKET_TYPE: Final = b"Socket-Type"
DEALER: Final = b"DEALER"


def encode_message(body: bytes, most: int = MAX_MESSAGE) -> bytes:
    """A message of one frame; ValueError if `body` has more than `most` bytes."""
    if len(body) > most:
        raise ValueError(f"a message has {len(body)} bytes; {most} are allowed")
    if len(body) > _SHORT_BYTES:
        return _LONG.pack(_LONG_FLAG, len(body)) + body
    return bytes((0, len(body))) + body


def greeting(minor: int) -> bytes:
    """The first bytes of a connection, in ZMTP 3.`minor`."""
    return _GREETING.pack(0xFF, b"", 0x7F, _MAJOR, minor, _MECHANISM, 0, b"")


def ready(socket_type: bytes) -> bytes:
    """The command READY of a socket of this type."""
    body = b"\x05READY" + bytes((len(_SOCKET_TYPE),)) + _SOCKET_TYPE
    body += struct.pack(">I", len(socket_type)) + socket_type
    return bytes((_COMMAND, len(body))) + body


OPENING: Final = greeting(1) + ready(DEALER)  # the first bytes of a connection to a worker


class ZmtpPeer:
    """The bytes that one connection has received. Must not be used after a ProtocolError.
    `accepted`: the socket types that the peer may have."""

    def __init__(self, accepted: Collection[bytes] = (DEALER,)) -> None:
        self.socket_type = b""  # as in the READY of the peer
        self._accepted = accepted
        self._received = bytearray()
        self._has_greeting = False

    @property
    def is_ready(self) -> bool:
        """Have greeting and READY been received?"""
        return bool(self.socket_type)

    def feed(self, data: bytes) -> None:
        """Add received bytes; the last call of next_message() must have returned None."""
        self._received += data

    def next_message(self) -> bytes | None:
        """The next whole message; None if more bytes are needed. Raises ProtocolError."""
        if not (self._has_greeting or self._take_greeting()):
            return None
        if not (self.is_ready or self._take_ready()):
            return None
        return self._take_frame(0)

    def _take_greeting(self) -> bool:
        if len(self._received) < GREETING_BYTES:
            return False
        head, _, tail, major, _, mechanism, as_server, filler = _GREETING.unpack(
            self._take(GREETING_BYTES)
        )
        if (head, tail, major) != (0xFF, 0x7F, _MAJOR):
            raise ProtocolError("ZMTP: the greeting is not a greeting of ZMTP 3")
        if mechanism != _MECHANISM or as_server or any(filler):
            raise ProtocolError("ZMTP: the greeting does not ask for the NULL mechanism")
        self._has_greeting = True
        return True

    def _take_ready(self) -> bool:
        body = self._take_frame(_COMMAND)
        if body is None:
            return False
        if body[:6] != b"\x05READY":
            raise ProtocolError("ZMTP: the first command is not READY")
        socket_type = _decode_metadata(body[6:]).get(_SOCKET_TYPE, b"")
        if socket_type not in self._accepted:
            raise ProtocolError("ZMTP: the socket type of the peer is not served")
        self.socket_type = socket_type
        return True

    def _take_frame(self, kind: int) -> bytes | None:
        """The body of the next frame. Its flags must be `kind` (the length flag may be set)."""
        if not self._received:
            return None
        flags = self._received[0]
        if flags & ~_LONG_FLAG != kind:
            raise ProtocolError(f"ZMTP: a frame has flags {flags:#x}; expected {kind:#x}")
        head = _LONG.size if flags & _LONG_FLAG else 2
        if len(self._received) < head:
            return None
        size = int.from_bytes(self._received[1:head], "big")
        _check_size(size, bool(flags & _LONG_FLAG), kind)
        if len(self._received) < head + size:
            return None
        return self._take(head + size)[head:]

    def _take(self, count: int) -> bytes:
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken


def _check_size(size: int, is_long: bool, kind: int) -> None:
    most = _SHORT_BYTES if kind & _COMMAND else MAX_MESSAGE
    if size > most:
        raise ProtocolError(f"ZMTP: a frame has {size} bytes; {most} are allowed")
    if is_long and size <= _SHORT_BYTES:
        raise ProtocolError(f"ZMTP: the length of a frame of {size} bytes is not one byte")


def _decode_metadata(data: bytes) -> dict[bytes, bytes]:
    """The properties of a READY command."""
    properties: dict[bytes, bytes] = {}
    while data:
        name, data = _split(data, 1, data[0])
        value, data = _split(data, 4, int.from_bytes(data[:4], "big"))
        if not name or name in properties:
            raise ProtocolError("ZMTP: READY has a property without a name, or a property twice")
        properties[name] = value
    return properties


def _split(data: bytes, head: int, size: int) -> tuple[bytes, bytes]:
    """The `size` bytes after a length field of `head` bytes, and the rest."""
    if len(data) < head + size:
        raise ProtocolError("ZMTP: READY ends within a property")
    return data[head : head + size], data[head + size :]
