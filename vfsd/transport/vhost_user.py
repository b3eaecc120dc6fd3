# SPDX-License-Identifier: Apache-2.0
"""vhost-user messages on the wire: one table of messages, and the codec for both directions.

Spec: QEMU docs/interop/vhost-user.rst. The back-end decodes messages and encodes replies, a
front-end does the reverse. What a message carries is in vhost_user_payloads.py. There is no I/O and
no state here. Every decoding function raises ProtocolError, and nothing else, whatever bytes it
gets.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import Final

from vfsd.transport.errors import ProtocolError
from vfsd.transport.vhost_user_payloads import (
    U64,
    Config,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Payload,
    VringAddr,
    VringFd,
    VringState,
)

HEADER: Final = struct.Struct("=III")  # number, flags, payload size
VERSION: Final = 0x1
VERSION_MASK: Final = 0x3
FLAG_REPLY: Final = 0x4
FLAG_NEED_REPLY: Final = 0x8
MAX_PAYLOAD: Final = 4096  # the largest message of the table is 268 bytes
MAX_FDS: Final = 8


class VirtioFeature(IntFlag):
    """Virtio feature bits (GET_FEATURES, SET_FEATURES)."""

    LOG_ALL = 1 << 26
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    RING_PACKED = 1 << 34


class ProtocolFeature(IntFlag):
    """vhost-user protocol feature bits."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    DEVICE_STATE = 1 << 19


class Fds(Enum):
    """How many fds come with a message."""

    NONE = "none"
    ONE = "one"
    EACH = "one a region"
    OPTIONAL = "one, unless the payload says there is none; it may have got lost"
    STRAY = "none, but one is closed without complaint"


class States(Enum):
    """When the front-end may send a message."""

    ANY = "any time"
    NEGOTIATED = "after SET_FEATURES"


class Number(IntEnum):
    """Message numbers, front-end to back-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


@dataclass(frozen=True)
class MessageKind:
    """One row of the table: all that must be known about a message before its content is
    decoded."""

    number: Number
    payload: type[Payload] | None
    reply: type[Payload] | None  # None: a U64, if an answer is asked for
    fds: Fds
    needs: ProtocolFeature | None
    states: States

    @property
    def name(self) -> str:
        return self.number.name


def _table() -> dict[int, MessageKind]:
    n, f = Number, ProtocolFeature
    any_time, negotiated = States.ANY, States.NEGOTIATED
    none, one, optional = Fds.NONE, Fds.ONE, Fds.OPTIONAL
    slots, shmfd = f.CONFIGURE_MEM_SLOTS, f.INFLIGHT_SHMFD
    rows = (
        # number                  payload       reply       fds        needs           states
        (n.GET_FEATURES,          None,         U64,        none,      None,           any_time),
        (n.SET_FEATURES,          U64,          None,       none,      None,           any_time),
        (n.SET_OWNER,             None,         None,       none,      None,           any_time),
        (n.RESET_OWNER,           None,         None,       none,      None,           any_time),
        (n.SET_MEM_TABLE,         MemoryTable,  None,       Fds.EACH,  None,           any_time),
        (n.SET_VRING_NUM,         VringState,   None,       none,      None,           negotiated),
        (n.SET_VRING_ADDR,        VringAddr,    None,       none,      None,           negotiated),
        (n.SET_VRING_BASE,        VringState,   None,       none,      None,           negotiated),
        (n.GET_VRING_BASE,        VringState,   VringState, none,      None,           negotiated),
        (n.SET_VRING_KICK,        VringFd,      None,       optional,  None,           negotiated),
        (n.SET_VRING_CALL,        VringFd,      None,       optional,  None,           any_time),
        (n.SET_VRING_ERR,         VringFd,      None,       optional,  None,           any_time),
        (n.GET_PROTOCOL_FEATURES, None,         U64,        none,      None,           any_time),
        (n.SET_PROTOCOL_FEATURES, U64,          None,       none,      None,           any_time),
        (n.GET_QUEUE_NUM,         None,         U64,        none,      f.MQ,           any_time),
        (n.SET_VRING_ENABLE,      VringState,   None,       none,      None,           negotiated),
        (n.GET_CONFIG,            Config,       Config,     none,      f.CONFIG,       any_time),
        (n.SET_CONFIG,            Config,       None,       none,      f.CONFIG,       any_time),
        (n.GET_INFLIGHT_FD,       Inflight,     Inflight,   none,      shmfd,          any_time),
        (n.SET_INFLIGHT_FD,       Inflight,     None,       one,       shmfd,          any_time),
        (n.RESET_DEVICE,          None,         None,       none,      f.RESET_DEVICE, any_time),
        (n.GET_MAX_MEM_SLOTS,     None,         U64,        none,      slots,          any_time),
        (n.ADD_MEM_REG,           MemoryRegion, None,       one,       slots,          any_time),
        (n.REM_MEM_REG,           MemoryRegion, None,       Fds.STRAY, slots,          any_time),
    )  # fmt: skip
    return {row[0].value: MessageKind(*row) for row in rows}


MESSAGES: Final = _table()


@dataclass(frozen=True)
class Header:
    """The 12 bytes every message starts with."""

    number: int
    flags: int
    size: int

    @property
    def need_reply(self) -> bool:
        return bool(self.flags & FLAG_NEED_REPLY)

    @property
    def name(self) -> str:
        kind = MESSAGES.get(self.number)
        return kind.name if kind else f"message {self.number}"


@dataclass(frozen=True)
class Message:
    """A decoded message. Its holder owns `fds`."""

    kind: MessageKind
    payload: Payload | None
    fds: tuple[int, ...] = ()
    need_reply: bool = False

    @property
    def name(self) -> str:
        return self.kind.name


def decode_header(data: bytes) -> Header:
    """Check what must hold before a payload is read: 12 bytes, version 1, a bounded size."""
    if len(data) != HEADER.size:
        raise ProtocolError(f"message header has {len(data)} bytes; expected {HEADER.size}")
    header = Header(*HEADER.unpack(data))
    if header.flags & VERSION_MASK != VERSION:
        raise ProtocolError(f"{header.name} has version {header.flags & VERSION_MASK}; expected 1")
    if header.size > MAX_PAYLOAD:
        raise ProtocolError(f"{header.name} announces {header.size} bytes; at most {MAX_PAYLOAD}")
    return header


def find_kind(header: Header) -> MessageKind:
    if header.flags & FLAG_REPLY:
        raise ProtocolError(f"{header.name} is marked as a reply; expected a message")
    kind = MESSAGES.get(header.number)
    if kind is None:
        raise ProtocolError(f"message {header.number} is not known here")
    return kind


def decode_message(header: Header, data: bytes, fds: Sequence[int] = ()) -> Message:
    """Decode what a front-end sent. The caller keeps `fds` if this raises."""
    kind = find_kind(header)
    try:
        payload = _decode_payload(kind.payload, data)
        _check_fds(kind, payload, len(fds))
    except ProtocolError as error:
        raise ProtocolError(f"{kind.name}: {error}") from None
    return Message(kind, payload, tuple(fds), header.need_reply)


def expects_fds(header: Header, data: bytes) -> bool:
    """Do fds belong to this message? False if the payload cannot be decoded; never raises."""
    kind = MESSAGES.get(header.number)
    if kind is None:
        return False
    try:
        return _fd_count(kind.fds, _decode_payload(kind.payload, data)) > 0
    except ProtocolError:
        return False


def decode_reply(sent: Number, header: Header, data: bytes) -> Payload:
    """Decode the back-end's reply to the message `sent`: its payload, or a U64 acknowledgement."""
    if header.number != sent or not header.flags & FLAG_REPLY:
        raise ProtocolError(f"{header.name} (flags {header.flags:#x}) does not answer {sent.name}")
    kind = MESSAGES[sent]
    try:
        return (kind.reply or U64).unpack(data)
    except ProtocolError as error:
        raise ProtocolError(f"reply to {sent.name}: {error}") from None


def encode_message(
    number: Number, payload: Payload | None = None, need_reply: bool = False
) -> bytes:
    """The bytes of a message to the back-end; its fds travel beside the first of them."""
    data = payload.pack() if payload else b""
    flags = VERSION | (FLAG_NEED_REPLY if need_reply else 0)
    return HEADER.pack(number, flags, len(data)) + data


def encode_reply(number: int, payload: Payload | None) -> bytes:
    """The bytes of a reply to the front-end. Where the protocol allows it, no payload means
    "error"."""
    data = payload.pack() if payload else b""
    return HEADER.pack(number, VERSION | FLAG_REPLY, len(data)) + data


def _decode_payload(payload: type[Payload] | None, data: bytes) -> Payload | None:
    if payload is not None:
        return payload.unpack(data)
    if data:
        raise ProtocolError(f"payload has {len(data)} bytes; expected none")
    return None


def _check_fds(kind: MessageKind, payload: Payload | None, count: int) -> None:
    wanted = _fd_count(kind.fds, payload)
    is_allowed = {Fds.STRAY: count <= 1, Fds.OPTIONAL: count == 0}.get(kind.fds, False)
    if count != wanted and not is_allowed:
        raise ProtocolError(f"comes with {count} fds; expected {wanted}")


def _fd_count(fds: Fds, payload: Payload | None) -> int:
    if fds is Fds.EACH and isinstance(payload, MemoryTable):
        return len(payload.regions)
    if fds is Fds.OPTIONAL and isinstance(payload, VringFd):
        return int(payload.has_fd)
    return int(fds is Fds.ONE)
