# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: the byte stream of a worker that was taken over, as the supervisor parses it.

Input: a first byte that says how well the stream begins, then pieces: frames whose flags and
lengths may be wrong, or any bytes. Each piece is fed as it is, so frames are cut anywhere.

What must hold: messages come out, or a ProtocolError and then nothing more; messages are bounded,
and between two pieces at most one incomplete frame is kept. A stream of whole messages gives
exactly these messages.
"""

import struct
from typing import Final

from tests.fuzz.reader import Reader
from vfsd.transport.control_messages import MAX_MESSAGE
from vfsd.transport.errors import ProtocolError
from vfsd.transport.zmtp import FRAME_BYTES, GREETING_BYTES, OPENING, ZmtpPeer, encode_message

STREAM_BYTES: Final = 1 << 17  # two bytes of the input can become 64 KiB of the stream
SIZES: Final = (0, 1, 5, 255, 256, 4096, MAX_MESSAGE, MAX_MESSAGE + 1, 1 << 32, (1 << 64) - 1)


def _frame(reader: Reader) -> bytes:
    """Flags, length and body; the length need not be the body's."""
    flags = reader.number() % 16
    body = reader.bytes(reader.number())
    size = reader.choice(SIZES) if reader.number() % 4 == 0 else len(body)
    head = struct.pack(">BQ", flags, size) if flags & 2 else bytes((flags, size & 0xFF))
    return head + body


def _piece(reader: Reader) -> bytes:
    match reader.number() % 4:
        case 0:
            return reader.bytes(reader.number())
        case 1:
            return encode_message(bytes(reader.choice(SIZES[:7])))
        case _:
            return _frame(reader)


def _opening(reader: Reader) -> bytes:
    """The bytes that a connection starts with: whole or cut, perhaps with one wrong byte."""
    kind = reader.number()
    opening = bytearray(OPENING)
    if kind & 1:
        opening[reader.number() % len(opening)] = reader.number()
    if kind & 2:
        del opening[reader.number() % len(opening) :]
    if kind & 4:
        del opening[GREETING_BYTES:]
        opening += _frame(reader)
    return bytes(opening)


def _feed(peer: ZmtpPeer, data: bytes) -> list[bytes]:
    """Feed as the supervisor does: every message that is there is taken before more bytes come."""
    messages = []
    peer.feed(data)
    while (message := peer.next_message()) is not None:
        assert len(message) <= MAX_MESSAGE
        messages.append(message)
    kept = len(peer._received)  # noqa: SLF001 - its bound is what must hold
    assert kept < FRAME_BYTES
    return messages


def _check_honest(reader: Reader) -> None:
    """The messages of an honest worker come out as they were sent, however the stream is cut."""
    sent = [bytes(reader.choice(SIZES[:6])) for _ in range(reader.number() % 4)]
    stream = OPENING + b"".join(map(encode_message, sent))
    peer, came = ZmtpPeer(), []
    while stream:
        cut = 16 + reader.number()
        came += _feed(peer, stream[:cut])
        stream = stream[cut:]
    assert came == sent
    assert peer.is_ready


def run(data: bytes) -> None:
    """Run one connection."""
    reader = Reader(data)
    if reader.number() % 8 == 7:
        _check_honest(reader)
        return
    peer = ZmtpPeer()
    try:
        _feed(peer, _opening(reader))
        fed = 0
        while reader and fed < STREAM_BYTES:
            piece = _piece(reader)
            fed += len(piece)
            _feed(peer, piece)
    except ProtocolError:
        return
