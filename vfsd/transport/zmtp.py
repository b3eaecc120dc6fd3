# SPDX-License-Identifier: Apache-2.0
"""The supervisor's half of a ZMTP 3 connection: bytes in, messages out. Does no I/O.

THEORY

Purpose. The other half is libzmq in a worker, and that worker may have been taken over by its
guest. So the code that reads the worker's bytes is written in a memory-safe language, is small, and
accepts only what one of our workers sends; everything else is a ProtocolError.

What is accepted (RFC 23 and 37: DEALER, NULL mechanism), in this order: a greeting; one READY
command with Socket-Type DEALER; then messages of one frame each, of at most MAX_MESSAGE bytes, in
the shorter of the two encodings of their length. Messages of several parts (the MORE flag), every
other command (our workers send no heartbeats: ZMQ_HEARTBEAT_IVL is not set), subscriptions, other
mechanisms and unknown flags are refused.

Memory. The caller takes every complete message before it feeds more bytes. After that the buffer
holds at most one incomplete frame, so a connection never holds more than FRAME_BYTES plus the bytes
that are fed at once.
"""

import struct
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


def encode_message(body: bytes) -> bytes:
    """A message of one frame; ValueError if `body` has more than MAX_MESSAGE bytes."""
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a message has {len(body)} bytes; {MAX_MESSAGE} are allowed")
    if len(body) > _SHORT_BYTES:
        return _LONG.pack(_LONG_FLAG, len(body)) + body
    return bytes((0, len(body))) + body


def _encode_opening() -> bytes:
    greeting = _GREETING.pack(0xFF, b"", 0x7F, _MAJOR, 1, _MECHANISM, 0, b"")
    value = b"DEALER"
    ready = b"\x05READY" + bytes((len(_SOCKET_TYPE),)) + _SOCKET_TYPE
    ready += struct.pack(">I", len(value)) + value
    return greeting + bytes((_COMMAND, len(ready))) + ready


OPENING: Final = _encode_opening()  # the first bytes of a connection: greeting and READY


class ZmtpPeer:
    """The bytes that one connection has received. Must not be used after a ProtocolError."""

    def __init__(self) -> None:
        self.is_ready = False  # greeting and READY have been received
        self._received = bytearray()
        self._has_greeting = False

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
        if _decode_metadata(body[6:]).get(_SOCKET_TYPE) != b"DEALER":
            raise ProtocolError("ZMTP: the socket type of the peer is not DEALER")
        self.is_ready = True
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
