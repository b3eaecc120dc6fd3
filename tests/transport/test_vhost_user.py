# SPDX-License-Identifier: Apache-2.0
"""The vhost-user codec, byte by byte."""

import struct
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.transport.errors import ProtocolError
from vfsd.transport.vhost_user import (
    MAX_PAYLOAD,
    MESSAGES,
    Fds,
    Header,
    Message,
    Number,
    decode_header,
    decode_message,
    decode_reply,
    encode_message,
    encode_reply,
    expects_fds,
)
from vfsd.transport.vhost_user_payloads import (
    U64,
    Config,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Payload,
    Region,
    VringAddr,
    VringFd,
    VringState,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
regions = st.builds(Region, u64, u64, u64, u64)
PAYLOADS: dict[type[Payload], st.SearchStrategy[Payload]] = {
    U64: st.builds(U64, u64),
    VringState: st.builds(VringState, u32, u32),
    VringAddr: st.builds(VringAddr, u32, u32, u64, u64, u64, u64),
    VringFd: st.builds(VringFd, st.integers(0, 255), st.booleans()),
    MemoryTable: st.builds(MemoryTable, st.lists(regions, max_size=8).map(tuple)),
    MemoryRegion: st.builds(MemoryRegion, regions),
    Config: st.binary(max_size=256).flatmap(
        lambda data: st.builds(Config, u32, st.just(len(data)), u32, st.just(data))
    ),
    Inflight: st.builds(
        Inflight, u64, u64, *[st.integers(0, 0xFFFF)] * 2, st.sampled_from([20, 24])
    ),
}


def fd_count(kind_fds: Fds, payload: Payload | None) -> int:
    if isinstance(payload, MemoryTable):
        return len(payload.regions)
    if isinstance(payload, VringFd):
        return int(payload.has_fd)
    return int(kind_fds is Fds.ONE)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = MESSAGES[draw(st.sampled_from(sorted(MESSAGES)))]
    payload = draw(PAYLOADS[kind.payload]) if kind.payload else None
    fds = tuple(range(fd_count(kind.fds, payload)))
    return Message(kind, payload, fds, draw(st.booleans()))


def decode(data: bytes, fds: tuple[int, ...] = ()) -> Message:
    return decode_message(decode_header(data[:12]), data[12:], fds)


@given(messages())
def test_what_is_encoded_is_decoded(message: Message) -> None:
    data = encode_message(message.kind.number, message.payload, message.need_reply)
    assert decode(data, message.fds) == message
    assert expects_fds(decode_header(data[:12]), data[12:]) == (len(message.fds) > 0)


@given(st.binary(max_size=400), st.integers(0, 10))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes, fds: int) -> None:
    try:
        message = decode(data, tuple(range(fds)))
    except ProtocolError:
        return
    assert len(message.fds) == fds


@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=300), st.integers(0, 10))
def test_any_payload_is_decoded_or_a_protocol_error(number: int, data: bytes, fds: int) -> None:
    header = Header(number, 1, len(data))
    assert expects_fds(header, data) in (True, False)
    try:
        message = decode_message(header, data, tuple(range(fds)))
    except ProtocolError as error:
        assert str(error).startswith(Number(number).name)  # noqa: PT017
        return
    assert message.payload is None or message.payload.pack() == data


@given(st.sampled_from(sorted(Number)), st.integers(0, 50), u32, st.binary(max_size=300))
def test_any_reply_is_decoded_or_a_protocol_error(
    sent: Number, number: int, flags: int, data: bytes
) -> None:
    try:
        decode_reply(sent, Header(number, flags, len(data)), data)
    except ProtocolError:
        return
    assert number == sent


# Bytes as QEMU puts them on the wire, written out by hand.
GOLDEN = [
    (Number.GET_FEATURES, None, False, "01000000 01000000 00000000"),
    (
        Number.SET_FEATURES,
        U64(0x170000000),
        True,
        "02000000 09000000 08000000 0000007001000000",
    ),
    (
        Number.SET_VRING_ADDR,
        VringAddr(1, 0, 0x1000, 0x2000, 0x3000, 0),
        False,
        (
            "09000000 01000000 28000000 01000000 00000000 0010000000000000 0020000000000000"
            "0030000000000000 0000000000000000"
        ),
    ),
    (Number.SET_VRING_KICK, VringFd(3, True), False, "0c000000 01000000 08000000 0300000000000000"),
    (
        Number.SET_VRING_CALL,
        VringFd(2, False),
        False,
        "0d000000 01000000 08000000 0201000000000000",
    ),
    (
        Number.SET_MEM_TABLE,
        MemoryTable((Region(0, 0xA0000, 0x7F00, 0x10),)),
        False,
        (
            "05000000 01000000 28000000 01000000 00000000 0000000000000000 00000a0000000000"
            "007f000000000000 1000000000000000"
        ),
    ),
    (
        Number.ADD_MEM_REG,
        MemoryRegion(Region(1, 2, 3, 4)),
        True,
        (
            "25000000 09000000 28000000 0000000000000000 0100000000000000 0200000000000000"
            "0300000000000000 0400000000000000"
        ),
    ),
    (
        Number.GET_CONFIG,
        Config(4, 3, 1, b"abc"),
        False,
        "18000000 01000000 0f000000 04000000 03000000 01000000 616263",
    ),
    (
        Number.SET_INFLIGHT_FD,
        Inflight(0x1000, 0, 2, 128),
        False,
        "20000000 01000000 18000000 0010000000000000 0000000000000000 0200 8000 00000000",
    ),
    (
        Number.GET_INFLIGHT_FD,
        Inflight(0, 0, 2, 128, 20),
        False,
        "1f000000 01000000 14000000 0000000000000000 0000000000000000 0200 8000",
    ),
]


@pytest.mark.parametrize(("number", "payload", "need_reply", "text"), GOLDEN)
def test_messages_have_the_bytes_of_the_specification(
    number: Number, payload: Payload | None, need_reply: bool, text: str
) -> None:
    assert encode_message(number, payload, need_reply) == bytes.fromhex(text)


def test_a_reply_has_the_reply_flag_and_the_number_of_its_message() -> None:
    assert encode_reply(1, U64(5)) == struct.pack("=IIIQ", 1, 5, 8, 5)
    assert encode_reply(24, None) == struct.pack("=III", 24, 5, 0)
    header = decode_header(encode_reply(11, VringState(2, 17))[:12])
    reply = decode_reply(Number.GET_VRING_BASE, header, struct.pack("=II", 2, 17))
    assert reply == VringState(2, 17)


def test_an_acknowledgement_decodes_as_a_number() -> None:
    data = encode_reply(Number.SET_OWNER, U64(1))
    assert decode_reply(Number.SET_OWNER, decode_header(data[:12]), data[12:]) == U64(1)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (struct.pack("=III", 1, 2, 0), "version 2; expected 1"),
        (struct.pack("=III", 1, 0, 0), "version 0; expected 1"),
        (struct.pack("=III", 5, 1, MAX_PAYLOAD + 1), "SET_MEM_TABLE announces 4097 bytes"),
        (struct.pack("=III", 5, 1, 2**32 - 1), "announces 4294967295 bytes"),
        (b"\1\0\0\0", "header has 4 bytes"),
        (struct.pack("=III", 1, 5, 0), "GET_FEATURES is marked as a reply"),
        (struct.pack("=III", 77, 1, 0), "message 77 is not known"),
        (struct.pack("=IIIB", 1, 1, 1, 0), "payload has 1 bytes; expected none"),
        (struct.pack("=IIIII", 5, 1, 8, 9, 0), "memory table has 9 regions; at most 8"),
        (struct.pack("=IIIII", 5, 1, 8, 1, 0), "1 regions in 8 bytes"),
        (struct.pack("=IIIQ", 12, 1, 8, 0x200), "unknown bits"),
        (struct.pack("=III5Q", 37, 1, 40, 0, 0, 4096, 0, 0), "comes with 0 fds; expected 1"),
        (struct.pack("=IIIIII", 24, 1, 12, 0, 300, 0), "300 bytes carries 0 bytes"),
    ],
)
def test_each_kind_of_nonsense_has_its_own_message(data: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        decode(data)


def test_an_eventfd_may_have_got_lost() -> None:
    lost = decode(encode_message(Number.SET_VRING_CALL, VringFd(1, True)))
    assert (lost.payload, lost.fds) == (VringFd(1, True), ())


def test_a_stray_fd_is_tolerated_only_where_peers_send_one() -> None:
    region = MemoryRegion(Region(0, 4096, 0, 0))
    assert decode(encode_message(Number.REM_MEM_REG, region), (3,)).fds == (3,)
    with pytest.raises(ProtocolError, match="comes with 2 fds"):
        decode(encode_message(Number.REM_MEM_REG, region), (3, 4))
    with pytest.raises(ProtocolError, match="comes with 1 fds"):
        decode(encode_message(Number.SET_OWNER), (3,))


@given(regions)
def test_a_region_that_passes_its_check_does_not_wrap(region: Region) -> None:
    wraps = any(start + region.size > 2**64 for start in (region.gpa, region.uva, region.offset))
    if wraps or not region.size:
        with pytest.raises(ProtocolError):
            region.check()
    else:
        region.check()
        assert region.contains_uva(region.uva, region.size)
        assert not region.contains_uva(region.uva, region.size + 1)


def test_the_table_names_each_number_once() -> None:
    assert sorted(MESSAGES) == sorted(Number)
    assert all(MESSAGES[number].number == number for number in MESSAGES)
    assert len({astuple(kind)[0] for kind in MESSAGES.values()}) == len(MESSAGES)
