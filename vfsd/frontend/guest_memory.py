# SPDX-License-Identifier: Apache-2.0
"""Guest memory of a VMM without a guest: one sealed memfd, allocated from its start upwards.

The three addresses of a byte (in the file, for the driver, for the VMM) differ on purpose: a
back-end or a bridge that mixes them up fails at once.
"""

import os
from typing import Any, Final, Self

from vfsd.transport.native import ffi, lib
from vfsd.transport.shared_memory import create_segment, map_segment, unmap_segment
from vfsd.transport.vhost_user_payloads import Region

GPA: Final = 0x1_4000_0000
UVA: Final = 0x7D00_8000_0000
PAGE: Final = lib.PAGE


class GuestMemory:
    """Owns the memfd and its mapping until close(). Pages are allocated when they are touched."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = create_segment("vfsd-guest", size)
        try:
            self.addr: Any = map_segment(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        unmap_segment(self.addr, self.size)
        os.close(self.fd)

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes, page-aligned and zero; return their offset."""
        offset, self._next = self._next, self._next + round_to_pages(size)
        if self._next > self.size:
            raise MemoryError("guest memory is used up")
        return offset

    def region(self) -> Region:
        return Region(GPA, self.size, UVA, 0)

    def fill(self, memory: Any) -> None:
        """Fill in `memory`, a struct driver_memory, for C."""
        memory.addr = ffi.cast("uint8_t *", self.addr)
        memory.size = self.size
        memory.gpa = GPA


def round_to_pages(size: int) -> int:
    return (size + PAGE - 1) // PAGE * PAGE
