# SPDX-License-Identifier: Apache-2.0
"""Guest memory as the front-end described it: regions and their fds. The supervisor never maps the
memory."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from vfsd.transport.errors import ProtocolError
from vfsd.transport.native import lib
from vfsd.transport.vhost_user_payloads import Region

Row = tuple[Region, int]  # a region and the fd that it is mapped from


class Memory:
    """The present regions. Each method that changes them returns the fds that are out of use."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows = list(rows)

    def fds(self) -> list[int]:
        return [fd for _, fd in self.rows]

    def replace(self, rows: list[Row]) -> tuple[int, ...]:
        """SET_MEM_TABLE: `rows` replace all regions."""
        check_regions([region for region, _ in rows])
        dropped = tuple(self.fds())
        self.rows = rows
        return dropped

    def add(self, region: Region, fd: int) -> tuple[int, ...]:
        """ADD_MEM_REG. If the region is already there, the new fd replaces its fd."""
        kept = [row for row in self.rows if row[0] != region]
        check_regions([known for known, _ in kept] + [region])
        dropped = tuple(known_fd for known, known_fd in self.rows if known == region)
        self.rows = [*kept, (region, fd)]
        return dropped

    def remove(self, region: Region) -> tuple[int, ...]:
        """REM_MEM_REG: remove the region with the same addresses and size, whatever its offset."""
        for row in self.rows:
            if replace(row[0], offset=region.offset) == region:
                self.rows.remove(row)
                return (row[1],)
        raise ProtocolError(
            f"REM_MEM_REG: there is no region of {region.size:#x} bytes at guest address"
            f" {region.gpa:#x}"
        )

    def has(self, areas: Sequence[tuple[int, int]]) -> bool:
        """True if `areas` (user address, bytes) is not empty and each area lies in one region."""
        return bool(areas) and all(
            any(region.contains_uva(uva, size) for region, _ in self.rows) for uva, size in areas
        )

    def complaint(self) -> str:
        """The error for a VMM whose vrings lie outside of the regions, with what to do about it."""
        what = "not all of its memory" if self.rows else "no memory"
        return (
            f"the VMM shares {what} with virtiofsd; QEMU needs memory-backend-memfd,…,share=on"
            " (or -file) for all of the guest's memory, cloud-hypervisor --memory shared=on"
        )


def check_regions(regions: list[Region]) -> None:
    """Refuse regions that are too many, wrap around, or overlap."""
    if len(regions) > lib.DEVICE_REGIONS_MAX:
        raise ProtocolError(
            f"there would be {len(regions)} memory regions; the most is {lib.DEVICE_REGIONS_MAX}"
        )
    ordered = sorted(regions, key=lambda region: region.gpa)
    for region in ordered:
        region.check()
    for first, second in pairwise(ordered):
        if first.overlaps(second):
            raise ProtocolError(f"memory regions overlap at guest address {second.gpa:#x}")
