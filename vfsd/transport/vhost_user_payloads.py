# SPDX-License-Identifier: Apache-2.0
"""The payloads of vhost-user messages: one class per layout, with its bytes in both directions.

Spec: QEMU docs/interop/vhost-user.rst. `unpack` raises ProtocolError, and nothing else, whatever
bytes it gets.
"""

import struct
from dataclasses import astuple, dataclass
from typing import ClassVar, Final, Protocol, Self

from vfsd.transport.errors import ProtocolError

MAX_TABLE_REGIONS: Final = 8  # SET_MEM_TABLE
MAX_CONFIG: Final = 256
U64_MAX: Final = (1 << 64) - 1


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
