# SPDX-License-Identifier: Apache-2.0
"""Guest memory of huge pages, in the slices that QEMU announces.

No page is used here, since this host may have no free huge page, but each page is mapped.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import driver
from .daemon import Daemon
from .driver import Region
from .fuse import ROOT, Guest

GPA, UVA = 1 << 40, 1 << 46


def huge_page() -> int:
    """The size of a huge page of the default size, in bytes."""
    (line,) = [
        line
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("Hugepagesize:")
    ]
    return int(line.split()[1]) * 1024


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB)
    os.ftruncate(fd, 2 * huge_page())
    yield fd
    os.close(fd)


def test_slices_of_huge_pages_are_mapped(daemon: Daemon, guest: Guest, memory: int) -> None:
    """Below 640 KiB, above 768 KiB, and a whole page: the slices have offsets and ends inside a
    huge page."""
    frontend, page = guest.frontend, huge_page()
    slices = ((0, 0xA0000), (0xC0000, page - 0xC0000), (page, page))
    regions = [Region(GPA + start, size, UVA + start, start) for start, size in slices]
    for region in regions:
        frontend.tell(driver.ADD_MEM_REG, frontend.region_message(region), [memory])
        guest.lookup(ROOT, b".")
    for region in regions:
        frontend.tell(driver.REM_MEM_REG, frontend.region_message(region))
        guest.lookup(ROOT, b".")
    assert "cannot map" not in daemon.log.read_text()
