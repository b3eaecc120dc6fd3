# SPDX-License-Identifier: Apache-2.0
"""A large directory that changes while it is read."""

import os

from .conftest import FOUR_QUEUES, NEVER, ONE_QUEUE, in_memory, shares
from .process import Child
from .share import Folder, Place
from .syscalls import getdents

ENTRIES = 100_000
PASSES = 3


def disturb(folder: Folder) -> None:
    """Create, rename and remove names, half of them past the share."""
    for number in range(ENTRIES // 10):
        where = folder.path if number % 2 else folder.host
        os.mknod(where / f"comes{number}")
        os.rename(where / f"comes{number}", where / f"moves{number}")
        if number % 3:
            os.unlink(where / f"moves{number}")


@shares(in_memory(ONE_QUEUE), FOUR_QUEUES, deep=(in_memory(FOUR_QUEUES), ONE_QUEUE, NEVER))
def test_no_name_that_stays_is_lost_or_doubled(share: Place) -> None:
    folder = share.new_folder()
    for number in range(ENTRIES):
        os.mknod(folder.host / f"stays{number}")
    child = Child(lambda: disturb(folder))
    try:
        for _ in range(PASSES):
            names = [name for name in read_all(folder) if name.startswith(b"stays")]
            assert (len(names), len(set(names))) == (ENTRIES, ENTRIES)
        child.result(200)
    finally:
        child.end()


def read_all(folder: Folder) -> list[bytes]:
    fd = os.open(folder.path, os.O_RDONLY)
    names = []
    while entries := getdents(fd):
        names += [name for _, _, _, name in entries]
    os.close(fd)
    return names
