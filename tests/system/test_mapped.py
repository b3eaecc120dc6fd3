# SPDX-License-Identifier: Apache-2.0
"""Data that a guest stores through a mapping and writes back later is never reported as a hole."""

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .conftest import Backend, Share, serve
from .mounted import run

SIZE = (1 << 20) + 100
AT = 5 * mmap.PAGESIZE
DATA = b"stored"
WHOLE = bytes(AT) + DATA + bytes(SIZE - AT - len(DATA))
COPIES = {
    "tar": "tar --sparse -cf - file | tar -C copy -xf -",
    "cp": "cp --sparse=always file copy/file",
}


# Modes in which the guest keeps stored pages when a program opens the file. In the other modes an
# OPEN makes the guest write these pages back, or a file cannot be mapped.
KEEPING = (("--cache=always",), ("--cache=never", "--allow-mmap"))


@pytest.fixture(params=[(), *KEEPING], ids=lambda options: "".join(options) or "default")
def share(request: pytest.FixtureRequest) -> Iterator[Share]:
    with ExitStack() as stack:
        yield serve(Backend("", 2, request.param), stack)


@contextmanager
def stored(file: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[mmap.mmap]:
    """A mapped file of SIZE bytes. It has no data on the host; DATA is in the guest's page
    cache."""
    fd = os.open(file, flags)
    os.ftruncate(fd, SIZE)
    memory = mmap.mmap(fd, SIZE)
    os.close(fd)
    with memory:
        memory[AT : AT + len(DATA)] = DATA
        yield memory


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_what_is_copied_while_it_is_mapped_is_whole(
    share: Share, tmp_path: Path, copy: str
) -> None:
    (tmp_path / "copy").mkdir()
    (share.mount / "copy").symlink_to(tmp_path / "copy")
    with stored(share.mount / "file"):
        run(copy, share.mount)
    assert (tmp_path / "copy" / "file").read_bytes() == WHOLE


def test_a_file_that_the_guest_knew_as_empty_space_is_copied(share: Share, tmp_path: Path) -> None:
    """The guest cached the file's number of blocks, which is 0, before it opened the file."""
    file = share.mount / "file"
    with (share.host / "file").open("w") as made:
        made.truncate(SIZE)
    (tmp_path / "copy").mkdir()
    (share.mount / "copy").symlink_to(tmp_path / "copy")
    file.stat()
    with stored(file, os.O_RDWR):
        run(COPIES["tar"], share.mount)
    assert (tmp_path / "copy" / "file").read_bytes() == WHOLE


def test_all_is_data_up_to_the_end_of_the_file(share: Share) -> None:
    file = share.mount / "file"
    with stored(file), file.open("rb") as reader:
        fd = reader.fileno()
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, AT, os.SEEK_DATA) == AT
        assert os.lseek(fd, SIZE - 1, os.SEEK_DATA) == SIZE - 1
        assert os.lseek(fd, AT, os.SEEK_HOLE) == SIZE
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            for offset in (SIZE, SIZE + 1):
                with pytest.raises(OSError, match="No such device or address") as caught:
                    os.lseek(fd, offset, whence)
                assert caught.value.errno == errno.ENXIO


def test_pages_that_another_file_had_read_count(share: Share) -> None:
    """The pages are in the guest's cache, so the mapping sends no READ."""
    file = share.mount / "file"
    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, SIZE)
        assert file.read_bytes() == bytes(SIZE)
        with mmap.mmap(fd, SIZE) as memory:
            memory[AT : AT + len(DATA)] = DATA
            assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    finally:
        os.close(fd)


def test_holes_are_found_again_when_nobody_maps_the_file(share: Share) -> None:
    file = share.mount / "file"
    with stored(file):
        pass
    wait_until(lambda: _first_data(file) == AT, 20, "RELEASE")
    assert (share.host / "file").read_bytes() == WHOLE


def _first_data(file: Path) -> int:
    with file.open("rb") as reader:
        return os.lseek(reader.fileno(), 0, os.SEEK_DATA)
