# SPDX-License-Identifier: Apache-2.0
"""The device side of a split virtqueue in plain Python. It follows virtio 1.2 §2.7 and shares no
code with the driver that it tests, and it can do anything wrong."""

import struct
from typing import Any, NamedTuple

from vfsd.frontend.guest_memory import GPA
from vfsd.frontend.vmm import DriverVring

NEXT, WRITE, INDIRECT = 1, 2, 4
DESC = struct.Struct("<QIHH")


class Descriptor(NamedTuple):
    """One descriptor of a chain, as the device reads it."""

    gpa: int
    size: int
    flags: int

    @property
    def writable(self) -> bool:
        return bool(self.flags & WRITE)


class Device:
    """Takes chains off a vring and gives them back. `memory` is a writable buffer: guest memory."""

    def __init__(self, memory: Any, vring: DriverVring) -> None:
        self._memory = memory
        self.vring = vring
        self.last_avail = 0
        self.used_idx = 0

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self._memory[gpa - GPA : gpa - GPA + size])

    def write(self, gpa: int, data: bytes) -> None:
        self._memory[gpa - GPA : gpa - GPA + len(data)] = data

    def _word(self, offset: int) -> memoryview:
        """A view of 16 bits that is read and written at once. A slice of two bytes can be half old
        and half new."""
        return memoryview(self._memory)[offset : offset + 2].cast("H")

    def _get16(self, offset: int) -> int:
        return int(self._word(offset)[0])

    def _set16(self, offset: int, value: int) -> None:
        self._word(offset)[0] = value & 0xFFFF

    @property
    def avail_flags(self) -> int:
        return self._get16(self.vring.avail)

    @property
    def avail_idx(self) -> int:
        return self._get16(self.vring.avail + 2)

    @property
    def used_event(self) -> int:
        return self._get16(self.vring.avail + 4 + 2 * self.vring.size)

    def set_avail_event(self, index: int) -> None:
        self._set16(self.vring.used + 4 + 8 * self.vring.size, index)

    def set_used_flags(self, flags: int) -> None:
        self._set16(self.vring.used, flags)

    def take(self) -> tuple[int, list[Descriptor]]:
        """Take the next chain; returns its head and its descriptors, from an indirect table if the
        chain has one."""
        assert self.avail_idx != self.last_avail, "nothing is offered"
        at = self.vring.avail + 4 + 2 * (self.last_avail % self.vring.size)
        head = self._get16(at)
        self.last_avail = (self.last_avail + 1) & 0xFFFF
        return head, self._walk(GPA + self.vring.desc, head, direct=True)

    def _walk(self, table: int, index: int, *, direct: bool) -> list[Descriptor]:
        chain = []
        while True:
            gpa, size, flags, after = DESC.unpack(self.read(table + 16 * index, 16))
            if flags & INDIRECT:
                assert direct, "an indirect table in an indirect table"
                assert not flags & NEXT
                assert size % 16 == 0
                chain = self._walk(gpa, 0, direct=False)
                assert len(chain) == size // 16
                return chain
            chain.append(Descriptor(gpa, size, flags))
            if not flags & NEXT:
                return chain
            index = after

    def use(self, head: int, size: int) -> None:
        """Give a chain back with the used length `size`."""
        at = self.vring.used + 4 + 8 * (self.used_idx % self.vring.size)
        self._memory[at : at + 8] = struct.pack("<II", head, size)
        self.publish(1)

    def publish(self, count: int) -> None:
        """Advance the used index. Without used elements, as use() writes them, the index is a
        lie."""
        self.used_idx = (self.used_idx + count) & 0xFFFF
        self._set16(self.vring.used + 2, self.used_idx)
