# SPDX-License-Identifier: Apache-2.0
"""The half of ZMTP that the supervisor speaks: what it accepts, and what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.transport.control_messages import MAX_MESSAGE
from vfsd.transport.errors import ProtocolError
from vfsd.transport.zmtp import FRAME_BYTES, OPENING, ZmtpPeer, encode_message, greeting

GREETING, READY = OPENING[:64], OPENING[64:]
# GREETING and READY as libzmq 4.3.5 sends them: its signature has a length where ours has padding,
# and its READY has an identity.
LIBZMQ = (
    b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL" + bytes(48)
    + b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"
)  # fmt: skip


def take_all(peer: ZmtpPeer, data: bytes, at_once: int = 1 << 20) -> list[bytes]:
    found = []
    for start in range(0, len(data), at_once):
        peer.feed(data[start : start + at_once])
        while (message := peer.next_message()) is not None:
            found.append(message)
    return found


@pytest.mark.parametrize("opening", [OPENING, LIBZMQ])
@pytest.mark.parametrize("at_once", [1, 7, 64, 1 << 20])
def test_messages_come_out_as_they_went_in(opening: bytes, at_once: int) -> None:
    bodies = [b"", b"x", b"y" * 255, b"z" * 256, b"w" * 5000]
    peer = ZmtpPeer()
    assert take_all(peer, opening, at_once) == []
    assert peer.is_ready
    assert take_all(peer, b"".join(map(encode_message, bodies)), at_once) == bodies


def test_the_longest_message() -> None:
    peer = ZmtpPeer()
    body = b"x" * MAX_MESSAGE
    assert take_all(peer, OPENING + encode_message(body), 16384) == [body]
    with pytest.raises(ValueError, match="are allowed"):
        encode_message(body + b"x")


REFUSED = {
    "no greeting": b"GET / HTTP/1.1\r\n" + bytes(64),
    "ZMTP 2": GREETING[:10] + b"\x02" + GREETING[11:],
    "ZMTP 4": GREETING[:10] + b"\x04" + GREETING[11:],
    "signature": GREETING[:9] + b"\0" + GREETING[10:],
    "mechanism": GREETING[:12] + b"CURVE".ljust(20, b"\0") + GREETING[32:],
    "server": GREETING[:32] + b"\x01" + GREETING[33:],
    "filler": GREETING[:63] + b"\x01",
    "message before READY": GREETING + encode_message(b"{}"),
    "ERROR for READY": GREETING + b"\x04\x09\x05ERROR\x02no",
    "long command": GREETING + b"\x06" + (300).to_bytes(8, "big") + bytes(300),
    "another socket type": GREETING + READY.replace(b"DEALER", b"ROUTER"),
    "no socket type": GREETING + b"\x04\x06\x05READY",
    "half a name": GREETING + b"\x04\x08\x05READY\x0bS",
    "half a value": GREETING + b"\x04\x16\x05READY\x0bSocket-Type\0\0\0\x06",
    "endless value": GREETING + b"\x04\x17\x05READY\x0bSocket-Type\xff\xff\xff\xffx",
    "a property twice": GREETING + b"\x04\x12\x05READY" + b"\x01a\0\0\0\0" * 2,
    "nameless property": GREETING + b"\x04\x0b\x05READY" + bytes(5),
    "READY twice": OPENING + READY,
    "several parts": OPENING + b"\x01\x01x",
    "several long parts": OPENING + b"\x03" + (300).to_bytes(8, "big"),
    "PING": OPENING + b"\x04\x07\x04PING\0\0",
    "unknown flag": OPENING + b"\x08\x00",
    "frame beyond the limit": OPENING + b"\x02" + (MAX_MESSAGE + 1).to_bytes(8, "big"),
    "frame of 2**63": OPENING + b"\x02" + (1 << 63).to_bytes(8, "big"),
    "short frame with a long length": OPENING + b"\x02" + (255).to_bytes(8, "big") + bytes(255),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_everything_else_is_a_protocol_error(name: str) -> None:
    for at_once in (1, 1 << 20):
        with pytest.raises(ProtocolError, match="ZMTP"):
            take_all(ZmtpPeer(), REFUSED[name], at_once)


def size_held(peer: ZmtpPeer) -> int:
    return len(vars(peer)["_received"])


@given(st.lists(st.binary(max_size=300)), st.booleans())
def test_any_bytes_are_messages_or_a_protocol_error(chunks: list[bytes], is_open: bool) -> None:
    peer = ZmtpPeer()
    try:
        take_all(peer, OPENING if is_open else b"")
        for chunk in chunks:
            take_all(peer, chunk)
            assert size_held(peer) <= FRAME_BYTES
    except ProtocolError as error:
        assert str(error)  # noqa: PT017


def test_what_never_ends_is_never_held() -> None:
    peer = ZmtpPeer()
    take_all(peer, OPENING + b"\x02" + MAX_MESSAGE.to_bytes(8, "big"))
    for _ in range(50):
        take_all(peer, bytes(4096) if size_held(peer) + 4096 <= FRAME_BYTES else b"\0")
        assert size_held(peer) <= FRAME_BYTES + 4096


SUBSCRIBER = LIBZMQ.replace(b"\x29\x05READY", b"\x26\x05READY").replace(b"\x06DEALER", b"\x03SUB")


def test_a_subscriber_is_accepted_where_the_caller_says_so() -> None:
    peer = ZmtpPeer((b"DEALER", b"SUB"))
    assert take_all(peer, SUBSCRIBER + encode_message(b"\x01log")) == [b"\x01log"]
    assert peer.socket_type == b"SUB"
    with pytest.raises(ProtocolError, match="socket type"):
        take_all(ZmtpPeer(), SUBSCRIBER)


def test_the_older_greeting_differs_in_its_version_alone() -> None:
    assert greeting(1) == GREETING
    assert greeting(0) == GREETING[:11] + b"\0" + GREETING[12:]


def test_a_longer_message_can_be_sent_where_the_reader_allows_it() -> None:
    body = b"x" * (MAX_MESSAGE + 1)
    assert encode_message(body, MAX_MESSAGE + 1).endswith(body)
