# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: the byte stream of a worker that was taken over, as the supervisor parses it.

Input: a first byte that says how well the stream begins, then pieces: frames whose flags and
lengths may be wrong, or any bytes. Each piece is fed as it is, so frames are cut anywhere.

What must hold: a message comes out, or ProtocolError and then nothing more; messages are bounded,
and what is kept between two pieces is one incomplete frame at the most. A stream of whole messages
gives these messages.
"""

import struct
from typing import Final

from tests.fuzz.reader import Reader
from vfsd.transport.control_messages import MAX_MESSAGE
from vfsd.transport.errors import ProtocolError
from vfsd.transport.zmtp import FRAME_BYTES, GREETING_BYTES, OPENING, ZmtpPeer, encode_message

STREAM_BYTES: Final = 1 << 17  # two bytes of the input can be 64 KiB of it
SIZES: Final = (0, 1, 5, 255, 256, 4096, MAX_MESSAGE, MAX_MESSAGE + 1, 1 << 32, (1 << 64) - 1)


def _frame(reader: Reader) -> bytes:
    """Flags, length and body, of which the last two need not agree."""
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
    """What a connection starts with, whole or cut, or with a byte that is another one."""
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
    """As the supervisor does it: every message that is there is taken before more bytes come."""
    messages = []
    peer.feed(data)
    while (message := peer.next_message()) is not None:
        assert len(message) <= MAX_MESSAGE
        messages.append(message)
    kept = len(peer._received)  # noqa: SLF001 - that it is bounded is what must hold
    assert kept < FRAME_BYTES
    return messages


def _check_honest(reader: Reader) -> None:
    """What an honest worker sends comes out as it is, however it is cut."""
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
    """One connection."""
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
