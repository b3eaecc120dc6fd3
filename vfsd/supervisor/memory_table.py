# SPDX-License-Identifier: Apache-2.0
"""Guest memory as the front-end described it: regions and their fds. Never mapped here."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from vfsd.transport.errors import ProtocolError
from vfsd.transport.native import lib
from vfsd.transport.vhost_user import Region

Row = tuple[Region, int]  # a region and the fd it is mapped from


class Memory:
    """The regions in force. Each change returns the fds that are not needed any more."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows = list(rows)

    def fds(self) -> list[int]:
        return [fd for _, fd in self.rows]

    def replace(self, rows: list[Row]) -> tuple[int, ...]:
        """SET_MEM_TABLE: these and no others."""
        check_regions([region for region, _ in rows])
        dropped = tuple(self.fds())
        self.rows = rows
        return dropped

    def add(self, region: Region, fd: int) -> tuple[int, ...]:
        """ADD_MEM_REG. A region that is there already gets the new fd."""
        kept = [row for row in self.rows if row[0] != region]
        check_regions([known for known, _ in kept] + [region])
        dropped = tuple(known_fd for known, known_fd in self.rows if known == region)
        self.rows = [*kept, (region, fd)]
        return dropped

    def remove(self, region: Region) -> tuple[int, ...]:
        """REM_MEM_REG: found by addresses and size; the offset does not count."""
        for row in self.rows:
            if replace(row[0], offset=region.offset) == region:
                self.rows.remove(row)
                return (row[1],)
        raise ProtocolError(f"REM_MEM_REG for no known region, guest address {region.gpa:#x}")

    def has(self, areas: Sequence[tuple[int, int]]) -> bool:
        """True if there are areas (user address, bytes) and each lies in one region."""
        return bool(areas) and all(
            any(region.contains_uva(uva, size) for region, _ in self.rows) for uva, size in areas
        )

    def complaint(self) -> str:
        """What the operator is to do about a VMM whose vrings lie elsewhere."""
        what = "not all of its memory" if self.rows else "no memory"
        return (
            f"the VMM shares {what} with virtiofsd; QEMU needs memory-backend-memfd,…,share=on"
            " (or -file) for all of the guest's memory, cloud-hypervisor --memory shared=on"
        )


def check_regions(regions: list[Region]) -> None:
    """Refuse a set of regions that cannot be: too many, wrapping, or overlapping."""
    if len(regions) > lib.DEVICE_REGIONS_MAX:
        raise ProtocolError(f"more than {lib.DEVICE_REGIONS_MAX} memory regions")
    ordered = sorted(regions, key=lambda region: region.gpa)
    for region in ordered:
        region.check()
    for first, second in pairwise(ordered):
        if first.overlaps(second):
            raise ProtocolError(f"memory regions overlap at guest address {second.gpa:#x}")
