# SPDX-License-Identifier: Apache-2.0
"""A guest with a write-back cache: data that it has not written back yet is not reported as a hole
and is not lost."""

import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import Backend, Share, serve
from .mounted import run

DATA = bytes(range(1, 256)) * 100  # has no zeroes, and its length is not a multiple of a block
OPTIONS = ("--writeback", "--allow-direct-io")


@pytest.fixture
def share() -> Iterator[Share]:
    with ExitStack() as stack:
        yield serve(Backend("", 2, OPTIONS), stack)


@pytest.mark.parametrize(
    "copy",
    ["tar --sparse -cf - file | tar -C copy -xf -", "cp --sparse=always file copy/file"],
    ids=["tar", "cp"],
)
def test_what_is_copied_while_it_is_written_is_whole(
    share: Share, tmp_path: Path, copy: str
) -> None:
    (tmp_path / "copy").mkdir()
    (share.mount / "copy").symlink_to(tmp_path / "copy")
    fd = os.open(share.mount / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, DATA)
        os.pwrite(fd, b"end", 1 << 20)
        run(copy, share.mount)
        copied = (tmp_path / "copy" / "file").read_bytes()
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == (1 << 20) + 3
    finally:
        os.close(fd)
    assert copied == DATA + bytes((1 << 20) - len(DATA)) + b"end"


@pytest.mark.parametrize("direct_first", [True, False])
def test_a_mapping_is_written_back_past_o_direct(share: Share, direct_first: bool) -> None:
    """The guest writes pages back through any fh that is open for writing, also through an fh that
    was opened with O_DIRECT."""
    file = share.mount / "file"
    file.write_bytes(DATA)
    flags = [os.O_RDWR | os.O_DIRECT, os.O_RDWR]
    fds = [os.open(file, each) for each in (flags if direct_first else flags[::-1])]
    try:
        with mmap.mmap(fds[1 if direct_first else 0], len(DATA)) as memory:
            memory[-1] = 0
            memory.flush()
    finally:
        for fd in fds:
            os.close(fd)
    assert (share.host / "file").read_bytes() == DATA[:-1] + b"\0"
