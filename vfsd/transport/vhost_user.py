# SPDX-License-Identifier: Apache-2.0
"""vhost-user messages on the wire: one table of messages, one class per payload layout.

Spec: QEMU docs/interop/vhost-user.rst. This module owns the bytes of both directions (the back-end
decodes messages and encodes replies, a front-end does the reverse); it does no I/O and knows no
state. Every decoding function raises ProtocolError, and nothing else, whatever bytes it gets.
"""

import struct
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from enum import Enum, IntEnum, IntFlag
from typing import ClassVar, Final, Protocol, Self

from vfsd.transport.errors import ProtocolError

HEADER: Final = struct.Struct("=III")  # number, flags, payload size
VERSION: Final = 0x1
VERSION_MASK: Final = 0x3
FLAG_REPLY: Final = 0x4
FLAG_NEED_REPLY: Final = 0x8
MAX_PAYLOAD: Final = 4096  # the largest message of the table is 268 bytes
MAX_FDS: Final = 8
MAX_TABLE_REGIONS: Final = 8  # SET_MEM_TABLE
MAX_CONFIG: Final = 256
U64_MAX: Final = (1 << 64) - 1


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


class Payload(Protocol):
    """The methods of every payload class."""

    def pack(self) -> bytes: ...

    @classmethod
    def unpack(cls, data: bytes) -> Self: ...


class _Fixed:
    """A payload of integers at fixed places."""

    LAYOUT: ClassVar[struct.Struct]

    def pack(self) -> bytes:
        return self.LAYOUT.pack(*astuple(self))  # type: ignore[call-overload]

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) != cls.LAYOUT.size:
            raise ProtocolError(f"payload has {len(data)} bytes; expected {cls.LAYOUT.size}")
        return cls(*cls.LAYOUT.unpack(data))


@dataclass(frozen=True)
class U64(_Fixed):
    """A feature mask, a count, or an acknowledgement (0 is success)."""

    LAYOUT = struct.Struct("=Q")
    value: int


@dataclass(frozen=True)
class VringState(_Fixed):
    """A vring and a number: its size, its next avail index, or whether it is enabled (1 or 0)."""

    LAYOUT = struct.Struct("=II")
    index: int
    num: int


@dataclass(frozen=True)
class VringAddr(_Fixed):
    """Where a split ring lies, in front-end user addresses; `flags` bit 0: log used writes."""

    LAYOUT = struct.Struct("=IIQQQQ")
    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int


@dataclass(frozen=True)
class VringFd:
    """The vring that an eventfd belongs to; `has_fd` is False for "poll instead"."""

    NO_FD: ClassVar = 1 << 8
    index: int
    has_fd: bool

    def pack(self) -> bytes:
        return U64(self.index | (0 if self.has_fd else self.NO_FD)).pack()

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        value = U64.unpack(data).value
        if value >> 9:
            raise ProtocolError(f"vring index {value:#x} has unknown bits")
        return cls(value & 0xFF, not value & cls.NO_FD)


@dataclass(frozen=True)
class Region:
    """One region of guest memory; sizes and offsets in bytes."""

    LAYOUT: ClassVar = struct.Struct("=QQQQ")
    gpa: int
    size: int
    uva: int
    offset: int  # in the fd that comes with the region

    def check(self) -> None:
        """Refuse a region that wraps round the end of an address space."""
        if self.size == 0:
            raise ProtocolError(f"memory region at {self.gpa:#x} is empty")
        for name, start in (("guest", self.gpa), ("user", self.uva), ("file", self.offset)):
            if start + self.size - 1 > U64_MAX:
                raise ProtocolError(
                    f"memory region of {self.size:#x} bytes at {name} address {start:#x} wraps"
                )

    def contains_uva(self, uva: int, size: int) -> bool:
        return self.uva <= uva and uva + size <= self.uva + self.size

    def overlaps(self, other: "Region") -> bool:
        return self.gpa < other.gpa + other.size and other.gpa < self.gpa + self.size


@dataclass(frozen=True)
class MemoryTable:
    """All regions at once (SET_MEM_TABLE); one fd each, in this order."""

    HEAD: ClassVar = struct.Struct("=II")
    regions: tuple[Region, ...]

    def pack(self) -> bytes:
        packed = (Region.LAYOUT.pack(*astuple(region)) for region in self.regions)
        return self.HEAD.pack(len(self.regions), 0) + b"".join(packed)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) < cls.HEAD.size:
            raise ProtocolError(f"memory table has {len(data)} bytes; at least 8 are needed")
        count, _ = cls.HEAD.unpack_from(data)
        if count > MAX_TABLE_REGIONS:
            raise ProtocolError(f"memory table has {count} regions; at most {MAX_TABLE_REGIONS}")
        if len(data) != cls.HEAD.size + count * Region.LAYOUT.size:
            raise ProtocolError(f"memory table has {count} regions in {len(data)} bytes")
        regions = (Region(*row) for row in Region.LAYOUT.iter_unpack(data[cls.HEAD.size :]))
        return cls(tuple(regions))


@dataclass(frozen=True)
class MemoryRegion:
    """One region on its own (ADD_MEM_REG, REM_MEM_REG)."""

    LAYOUT: ClassVar = struct.Struct("=QQQQQ")
    region: Region

    def pack(self) -> bytes:
        return self.LAYOUT.pack(0, *astuple(self.region))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) != cls.LAYOUT.size:
            raise ProtocolError(f"payload has {len(data)} bytes; expected {cls.LAYOUT.size}")
        _, *fields = cls.LAYOUT.unpack(data)
        return cls(Region(*fields))


@dataclass(frozen=True)
class Config:
    """A piece of the device's configuration space."""

    HEAD: ClassVar = struct.Struct("=III")
    offset: int
    size: int
    flags: int
    data: bytes

    def pack(self) -> bytes:
        return self.HEAD.pack(self.offset, self.size, self.flags) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) < cls.HEAD.size:
            raise ProtocolError(f"configuration has {len(data)} bytes; at least 12 are needed")
        offset, size, flags = cls.HEAD.unpack_from(data)
        content = data[cls.HEAD.size :]
        if size > MAX_CONFIG or len(content) != size:
            raise ProtocolError(f"configuration of {size} bytes carries {len(content)} bytes")
        return cls(offset, size, flags, content)


@dataclass(frozen=True)
class Inflight:
    """The shared record of requests in flight. Bytes on the wire: 20, or 24 with C's padding."""

    LAYOUT: ClassVar = struct.Struct("=QQHH")
    PADDED: ClassVar = 24
    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int
    wire_size: int = PADDED

    def pack(self) -> bytes:
        fields = (self.mmap_size, self.mmap_offset, self.num_queues, self.queue_size)
        return self.LAYOUT.pack(*fields).ljust(self.wire_size, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) not in (cls.LAYOUT.size, cls.PADDED):
            raise ProtocolError(f"in-flight description has {len(data)} bytes; expected 20 or 24")
        mmap_size, mmap_offset, num_queues, queue_size = cls.LAYOUT.unpack_from(data)
        return cls(mmap_size, mmap_offset, num_queues, queue_size, len(data))


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
