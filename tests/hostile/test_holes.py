# SPDX-License-Identifier: Apache-2.0
"""Holes are reported where the host has them, unless the guest may hold back stores into them."""

import os
from pathlib import Path

import pytest

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import LSEEK_IN, READ_IN, ROOT, U64, Guest, Op

SIZE = 1 << 20
AT = 1 << 19  # the only data in the file


def sparse(share: Path) -> Path:
    file = share / "file"
    with file.open("wb") as made:
        made.truncate(SIZE)
        made.seek(AT)
        made.write(b"x" * 4096)
    return file


def first_data(guest: Guest, nodeid: int, fh: int, queue: int = 1) -> int:
    body = LSEEK_IN.pack(fh, 0, os.SEEK_DATA, 0)
    reply = guest.call(Op.LSEEK, nodeid, body, room=U64.size, queue=queue)
    return int(U64.unpack(reply)[0])


def read(guest: Guest, nodeid: int, fh: int, flags: int = 0) -> None:
    guest.call(Op.READ, nodeid, READ_IN.pack(fh, 0, 4096, 0, 0, flags, 0), room=4096)


MAPPED, UNMAPPED = 0, AT


@pytest.mark.parametrize(
    ("options", "access", "read_flags", "expected"),
    [
        ((), os.O_RDWR, 0, MAPPED),
        ((), os.O_RDWR, None, UNMAPPED),
        ((), os.O_RDWR, os.O_DIRECT, UNMAPPED),
        ((), os.O_RDONLY, 0, UNMAPPED),
        (("--cache=never",), os.O_RDWR, 0, UNMAPPED),
        (("--cache=metadata",), os.O_RDWR, 0, UNMAPPED),
        (("--cache=never", "--allow-mmap"), os.O_RDWR, 0, MAPPED),
        (("--cache=always",), os.O_RDWR, 0, MAPPED),
        (("--readonly",), os.O_RDONLY, 0, UNMAPPED),
    ],
)
def test_holes_are_those_of_the_host_unless_a_store_may_be_in_one(
    options: tuple[str, ...], access: int, read_flags: int | None, expected: int
) -> None:
    """`read_flags`: the flags of the open file that a READ uses; None: the guest reads nothing."""
    with Daemon(*options) as daemon, Frontend(daemon.socket) as frontend:
        sparse(daemon.share)
        guest = Guest(frontend.setup(1))
        guest.init()
        nodeid = guest.lookup(ROOT, b"file").nodeid
        fh = guest.open(nodeid, access)
        if read_flags is not None:
            read(guest, nodeid, fh, read_flags)
        assert first_data(guest, nodeid, fh) == expected


def test_a_file_that_is_open_elsewhere_counts_until_it_is_released() -> None:
    with Daemon() as daemon, Frontend(daemon.socket) as frontend:
        sparse(daemon.share)
        guest = Guest(frontend.setup(2))
        guest.init()
        nodeid = guest.lookup(ROOT, b"file").nodeid
        mapped = [guest.open(nodeid, os.O_RDWR) for _ in range(2)]
        reader = guest.open(nodeid, os.O_RDONLY)
        read(guest, nodeid, reader)
        for fh in mapped:
            assert first_data(guest, nodeid, reader, queue=2) == 0
            guest.release(nodeid, fh)
        wait_until(lambda: first_data(guest, nodeid, reader, queue=2) == AT, 5, "the last RELEASE")


@pytest.mark.parametrize(("options", "blocks"), [((), 1), (("--cache=never",), 0)])
def test_a_file_that_may_be_mapped_has_a_block(options: tuple[str, ...], blocks: int) -> None:
    """GNU tar does not read a file without blocks. An empty file has no place for a store."""
    with Daemon(*options) as daemon, Frontend(daemon.socket) as frontend:
        for name, size in (("empty", 0), ("file", SIZE)):
            (daemon.share / name).touch()
            os.truncate(daemon.share / name, size)
        guest = Guest(frontend.setup(1))
        guest.init()
        found = [guest.lookup(ROOT, name).attr.blocks for name in (b"empty", b"file")]
        assert found == [0, blocks]
