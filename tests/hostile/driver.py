# SPDX-License-Identifier: Apache-2.0
"""A vhost-user front-end and virtqueue driver in plain Python, for tests.

It shares no code with the daemon, so that one misreading of a specification cannot hide in both.
Everything a hostile front-end or guest would write by hand can be written by hand: raw messages,
raw descriptors, raw ring indexes.
"""

import array
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from tests.waiting import HANG

# vhost-user message numbers.
GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
GET_CONFIG, SET_CONFIG, GET_INFLIGHT_FD, SET_INFLIGHT_FD = 24, 25, 31, 32
RESET_DEVICE, GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG = 34, 36, 37, 38

HEADER = struct.Struct("<III")  # number, flags, payload bytes
VERSION, REPLY, NEED_REPLY = 1, 4, 8

# virtio and protocol feature bits.
F_INDIRECT, F_EVENT_IDX, F_PROTOCOL, F_VERSION_1 = 1 << 28, 1 << 29, 1 << 30, 1 << 32
P_MQ, P_REPLY_ACK, P_INFLIGHT, P_RESET, P_MEM_SLOTS = 1 << 0, 1 << 3, 1 << 12, 1 << 13, 1 << 15
P_WANTED = P_MQ | P_REPLY_ACK | P_INFLIGHT | P_RESET | P_MEM_SLOTS

# Split rings.
DESC = struct.Struct("<QIHH")
USED = struct.Struct("<II")
D_NEXT, D_WRITE, D_INDIRECT = 1, 2, 4

PAGE = 4096
TIMEOUT = HANG  # seconds that any wait may take


class NoReplyError(Exception):
    """The daemon did not answer in time, or hung up."""


class Region(NamedTuple):
    """A piece of guest memory: its addresses, its length, its place in the memfd."""

    gpa: int
    size: int
    uva: int
    offset: int

    def pack(self) -> bytes:
        return struct.pack("<QQQQ", *self)


class Segment(NamedTuple):
    """One piece of a chain; it becomes one descriptor."""

    gpa: int
    size: int
    writable: bool = False


class GuestMemory:
    """A memfd as guest memory. By default in two regions that adjoin in guest addresses only."""

    BASE = 0x4000_0000
    UVA = 0x7F00_0000_0000

    def __init__(self, size: int = 32 << 20, regions: int = 2) -> None:
        self.size = size
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, size)
        self.view = mmap.mmap(self.fd, size)
        each = size // regions
        self.regions = [
            # The regions are in the same order in guest addresses and in the file, but not in the
            # front-end's addresses.
            Region(self.BASE + i * each, each, self.UVA + (regions - i) * (each << 4), i * each)
            for i in range(regions)
        ]
        self._next = self.BASE
        self._free: dict[int, list[int]] = {}

    def close(self) -> None:
        self.view.close()
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def uva(self, gpa: int) -> int:
        for region in self.regions:
            if region.gpa <= gpa < region.gpa + region.size:
                return gpa - region.gpa + region.uva
        raise ValueError(f"{gpa:#x} is outside guest memory")

    def alloc(self, size: int) -> int:
        """Return the guest address of `size` free bytes."""
        size = self._class(size)
        if self._free.get(size):
            return self._free[size].pop()
        gpa, self._next = self._next, self._next + size
        if self._next > self.BASE + self.size:
            raise MemoryError("guest memory is used up")
        return gpa

    def free(self, gpa: int, size: int) -> None:
        self._free.setdefault(self._class(size), []).append(gpa)

    def mark(self) -> int:
        """Remember the allocations so far: reset() goes back to them."""
        return self._next

    def reset(self, mark: int) -> None:
        """Forget every allocation since mark(); no request may be under way in that memory."""
        self._next = mark
        self._free.clear()

    @staticmethod
    def _class(size: int) -> int:
        return max(64, 1 << (size - 1).bit_length())

    def read(self, gpa: int, size: int) -> bytes:
        at = gpa - self.BASE
        return self.view[at : at + size]

    def write(self, gpa: int, data: bytes) -> None:
        at = gpa - self.BASE
        self.view[at : at + len(data)] = data

    def _word(self, gpa: int) -> memoryview:
        """A field of 16 bits that is read and written as a whole.

        The other side never sees half of a new value beside half of the old one, and neither do we:
        a slice of two bytes would be copied byte by byte.
        """
        at = gpa - self.BASE
        return memoryview(self.view)[at : at + 2].cast("H")

    def read16(self, gpa: int) -> int:
        return int(self._word(gpa)[0])

    def write16(self, gpa: int, value: int) -> None:
        self._word(gpa)[0] = value & 0xFFFF


def eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


class Ring:
    """One split virtqueue, driver side."""

    def __init__(
        self, memory: GuestMemory, index: int, size: int = 128, *, event_idx: bool = True
    ) -> None:
        self.memory, self.index, self.size, self.event_idx = memory, index, size, event_idx
        self.desc = memory.alloc(16 * size)
        self.avail = memory.alloc(6 + 2 * size)
        self.used = memory.alloc(6 + 8 * size)
        self.kick_fd, self.call_fd, self.err_fd = eventfd(), eventfd(), eventfd()
        self.clear()

    def clear(self) -> None:
        """Make the ring a new one: no head offered, none used."""
        for gpa, size in self.areas():
            self.memory.write(gpa, bytes(size))
        self.avail_idx = 0
        self.used_seen = 0
        self.free = list(range(self.size))
        self.chains: dict[int, list[int]] = {}
        self.tables: dict[int, tuple[int, int]] = {}
        self.done: dict[int, int] = {}  # by head: the used length that wait() has not returned yet

    def areas(self) -> list[tuple[int, int]]:
        size = self.size
        return [(self.desc, 16 * size), (self.avail, 6 + 2 * size), (self.used, 6 + 8 * size)]

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)

    # Written by hand.

    def write_desc(self, index: int, gpa: int, size: int, flags: int = 0, next_: int = 0) -> None:
        self.memory.write(self.desc + 16 * index, DESC.pack(gpa, size, flags, next_))

    def offer(self, head: int) -> None:
        """Put a head into the avail ring; publish() makes it visible to the device."""
        self.memory.write16(self.avail + 4 + 2 * (self.avail_idx % self.size), head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF

    def publish(self, index: int | None = None) -> None:
        self.memory.write16(self.avail + 2, self.avail_idx if index is None else index)
        if self.event_idx:  # ask for a call at the next completion
            self.memory.write16(self.avail + 4 + 2 * self.size, self.used_seen)

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    # As an ordinary driver does it.

    def submit(self, segments: Sequence[Segment], *, indirect: bool = False) -> int:
        """Write a chain and offer its head."""
        direct = 1 if indirect else len(segments)
        if len(self.free) < direct:
            raise MemoryError(f"ring {self.index} is full")
        own = [self.free.pop(0) for _ in range(direct)]
        head = own[0]
        if indirect:
            table = self._chain(segments, list(range(len(segments))))
            gpa = self.memory.alloc(len(table))
            self.memory.write(gpa, table)
            self.tables[head] = gpa, len(table)
            self.write_desc(head, gpa, len(table), D_INDIRECT)
        else:
            for index, entry in zip(own, self._entries(segments, own), strict=True):
                self.memory.write(self.desc + 16 * index, entry)
        self.chains[head] = own
        self.done.pop(head, None)  # of a request that no caller waited for
        self.offer(head)
        return head

    @staticmethod
    def _entries(segments: Sequence[Segment], own: Sequence[int]) -> list[bytes]:
        following = [*own[1:], 0]
        last = len(own) - 1
        return [
            DESC.pack(s.gpa, s.size, D_WRITE * s.writable | D_NEXT * (i < last), following[i])
            for i, s in enumerate(segments)
        ]

    def _chain(self, segments: Sequence[Segment], own: Sequence[int]) -> bytes:
        return b"".join(self._entries(segments, own))

    def reap(self) -> None:
        """Take in the heads that the device has used."""
        index = self.memory.read16(self.used + 2)
        while self.used_seen != index:
            at = self.used + 4 + 8 * (self.used_seen % self.size)
            head, length = USED.unpack(self.memory.read(at, 8))
            self.used_seen = (self.used_seen + 1) & 0xFFFF
            own = self.chains.pop(head, None)
            if own is None:
                raise AssertionError(f"ring {self.index}: used head {head} is not outstanding")
            self.free += own
            if head in self.tables:
                self.memory.free(*self.tables.pop(head))
            self.done[head] = length
        if self.event_idx:
            self.memory.write16(self.avail + 4 + 2 * self.size, self.used_seen)

    def wait(self, head: int, timeout: float = TIMEOUT) -> int:
        """Wait until the device has used a head; return the used length."""
        deadline = time.monotonic() + timeout
        while True:
            self.reap()
            if head in self.done:
                return self.done.pop(head)
            if head not in self.chains:
                raise AssertionError(f"ring {self.index}: head {head} was used, and offered again")
            if self.memory.read16(self.used + 2) != self.used_seen:
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                raise NoReplyError(f"ring {self.index}: head {head} was not used")
            # A call that never comes must fail a test, so the used ring is not polled while we wait
            # for it.
            select.select([self.call_fd], [], [], left)
            with suppress(BlockingIOError):
                os.eventfd_read(self.call_fd)


@dataclass
class Reply:
    """A vhost-user reply. The receiver owns the fds."""

    number: int
    flags: int
    data: bytes
    fds: list[int] = field(default_factory=list)

    @property
    def u64(self) -> int:
        return int.from_bytes(self.data[:8], "little")


class Frontend:
    """A vhost-user connection, from the VMM's side."""

    def __init__(self, path: str, memory: GuestMemory | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.memory = memory or GuestMemory()
        self.rings: dict[int, Ring] = {}
        self.features = self.protocol_features = 0
        try:
            self.socket.connect(path)  # connect(2) waits for room in the backlog
            self.socket.settimeout(TIMEOUT)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        for ring in self.rings.values():
            ring.close()
        self.rings.clear()
        self.memory.close()

    # Messages.

    def send_raw(self, data: bytes, fds: Iterable[int] = ()) -> None:
        packed = array.array("i", fds)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)] if packed else []
        self.socket.sendmsg([data], control)

    def send(
        self, number: int, data: bytes = b"", fds: Iterable[int] = (), flags: int = VERSION
    ) -> None:
        self.send_raw(HEADER.pack(number, flags, len(data)) + data, fds)

    def receive(self) -> Reply:
        """Read one reply; NoReplyError at the end of the connection or after TIMEOUT."""
        try:
            head, fds = self._receive_exactly(HEADER.size)
            number, flags, size = HEADER.unpack(head)
            data, more = self._receive_exactly(size)
        except (TimeoutError, ConnectionError) as error:
            raise NoReplyError(str(error)) from None
        return Reply(number, flags, data, fds + more)

    def _receive_exactly(self, size: int) -> tuple[bytes, list[int]]:
        data, fds = b"", array.array("i")
        while len(data) < size:
            part, control, _, _ = self.socket.recvmsg(size - len(data), socket.CMSG_SPACE(8 * 4))
            for level, kind, payload in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(payload[: len(payload) // 4 * 4])
            if not part:
                raise NoReplyError("the daemon closed the connection")
            data += part
        return data, list(fds)

    def ask(self, number: int, data: bytes = b"", fds: Iterable[int] = ()) -> Reply:
        """Send a message to which the daemon sends a reply of its own."""
        self.send(number, data, fds)
        reply = self.receive()
        assert (reply.number, reply.flags) == (number, VERSION | REPLY)
        return reply

    def ack(self, number: int, data: bytes = b"", fds: Iterable[int] = ()) -> int:
        """Send a message with NEED_REPLY and return its acknowledgement: 0 is success."""
        if not self.protocol_features & P_REPLY_ACK:
            self.send(number, data, fds)
            return 0
        self.send(number, data, fds, VERSION | NEED_REPLY)
        reply = self.receive()
        assert (reply.number, reply.flags, len(reply.data)) == (number, VERSION | REPLY, 8)
        return reply.u64

    def tell(self, number: int, data: bytes = b"", fds: Iterable[int] = ()) -> None:
        """Send a message that must succeed."""
        result = self.ack(number, data, fds)
        assert result == 0, f"message {number} was refused"

    # What a VMM does with these messages.

    def negotiate(self, features: int = F_INDIRECT | F_EVENT_IDX) -> None:
        """Agree on features and take ownership; there are no memory and no rings yet."""
        offered = self.ask(GET_FEATURES).u64
        self.features = offered & (features | F_PROTOCOL | F_VERSION_1)
        protocol = self.ask(GET_PROTOCOL_FEATURES).u64 & P_WANTED
        self.tell(SET_PROTOCOL_FEATURES, struct.pack("<Q", protocol))
        self.protocol_features = protocol
        self.tell(SET_OWNER)
        self.tell(SET_FEATURES, struct.pack("<Q", self.features))

    def set_memory(self, regions: Sequence[Region] | None = None) -> None:
        regions = self.memory.regions if regions is None else regions
        table = struct.pack("<II", len(regions), 0) + b"".join(r.pack() for r in regions)
        self.tell(SET_MEM_TABLE, table, [self.memory.fd] * len(regions))

    def region_message(self, region: Region) -> bytes:
        return struct.pack("<Q", 0) + region.pack()

    def addr_message(self, ring: Ring) -> bytes:
        uva = self.memory.uva
        return struct.pack(
            "<IIQQQQ", ring.index, 0, uva(ring.desc), uva(ring.used), uva(ring.avail), 0
        )

    def add_ring(self, index: int, size: int = 128) -> Ring:
        event_idx = bool(self.features & F_EVENT_IDX)
        ring = Ring(self.memory, index, size, event_idx=event_idx)
        self.rings[index] = ring
        return ring

    def start_ring(self, ring: Ring, base: int = 0) -> None:
        state = struct.Struct("<II")
        number = struct.pack("<Q", ring.index)
        self.tell(SET_VRING_NUM, state.pack(ring.index, ring.size))
        self.tell(SET_VRING_BASE, state.pack(ring.index, base))
        self.tell(SET_VRING_ADDR, self.addr_message(ring))
        self.tell(SET_VRING_CALL, number, [ring.call_fd])
        self.tell(SET_VRING_ERR, number, [ring.err_fd])
        self.tell(SET_VRING_KICK, number, [ring.kick_fd])
        self.tell(SET_VRING_ENABLE, state.pack(ring.index, 1))

    def stop_ring(self, index: int) -> int:
        """Stop a ring; return the next avail index."""
        self.tell(SET_VRING_ENABLE, struct.pack("<II", index, 0))
        reply = self.ask(GET_VRING_BASE, struct.pack("<II", index, 0))
        got, base = struct.unpack("<II", reply.data)
        assert got == index
        return int(base)

    def restart_ring(self, index: int) -> Ring:
        """Stop a ring, empty it and start it again."""
        ring = self.rings[index]
        self.stop_ring(index)
        ring.clear()
        self.start_ring(ring)
        return ring

    def setup(
        self, queues: int = 1, size: int = 128, features: int = F_INDIRECT | F_EVENT_IDX
    ) -> Self:
        """Do the whole handshake, after which hiprio and `queues` request queues run."""
        self.negotiate(features)
        self.set_memory()
        for index in range(queues + 1):
            self.start_ring(self.add_ring(index, size))
        return self
