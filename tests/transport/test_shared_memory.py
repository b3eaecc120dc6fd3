# SPDX-License-Identifier: Apache-2.0
"""Segments are sealed and mapped, and an fd that is not the segment it should be is refused."""

import ctypes
import fcntl
import mmap
import os
from collections.abc import Callable

import pytest

from vfsd.transport.native import ffi
from vfsd.transport.shared_memory import (
    MAX_BLOB,
    create_blob,
    create_published,
    create_segment,
    map_segment,
    read_blob,
    unmap_segment,
)


def test_what_is_written_through_one_mapping_is_seen_through_another() -> None:
    fd = create_segment("test", 8192)
    first, second = map_segment(fd, 8192), map_segment(fd, 4096, writable=False)
    ffi.buffer(first, 8192)[:5] = b"hello"
    assert ffi.buffer(second, 4096)[:5] == b"hello"
    unmap_segment(first, 8192)
    unmap_segment(second, 4096)
    os.close(fd)


def test_a_segment_keeps_its_size() -> None:
    fd = create_segment("test", 4096)
    for size in (0, 100, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_a_blob_never_changes() -> None:
    fd = create_blob("test", b"content")
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    assert read_blob(fd) == b"content"
    with pytest.raises(PermissionError):
        map_segment(fd, 7)
    os.close(fd)


def test_only_its_maker_writes_a_published_segment() -> None:
    fd, addr = create_published("test", 8192)
    reader = map_segment(fd, 8192, writable=False)
    for number in range(3):  # a clone of the process that made the segment can also write to it
        pid = os.fork()
        if pid == 0:
            try:
                ffi.buffer(addr, 8192)[number] = bytes((number + 65,))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    assert ffi.buffer(reader, 8192)[:3] == b"ABC"
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    for other in (fd, again):
        with pytest.raises(PermissionError):
            os.pwrite(other, b"x", 0)
        with pytest.raises(PermissionError):
            map_segment(other, 8192)
    libc = ctypes.CDLL(None, use_errno=True)
    address = int(ffi.cast("uintptr_t", reader))
    assert libc.mprotect(ctypes.c_void_p(address), 8192, mmap.PROT_READ | mmap.PROT_WRITE) == -1
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    unmap_segment(reader, 8192)
    unmap_segment(addr, 8192)
    os.close(fd)
    os.close(again)


@pytest.mark.parametrize("make", [create_segment, create_published])
def test_a_segment_cannot_be_executed(make: Callable[[str, int], object]) -> None:
    made = make("test", 4096)
    fd = made[0] if isinstance(made, tuple) else made
    assert isinstance(fd, int)
    assert os.fstat(fd).st_mode & 0o111 == 0
    with pytest.raises(PermissionError):
        os.fchmod(fd, 0o777)
    if isinstance(made, tuple):
        unmap_segment(made[1], 4096)
    os.close(fd)


def test_more_than_a_segment_has_cannot_be_mapped() -> None:
    fd = create_segment("test", 4096)
    for size in (4097, 0):
        with pytest.raises(OSError, match="Invalid argument"):
            map_segment(fd, size)
    os.close(fd)


def test_memory_that_could_shrink_is_not_mapped() -> None:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    with pytest.raises(OSError, match="Invalid argument"):
        map_segment(fd, 4096)
    os.close(fd)


def test_a_huge_blob_is_not_read() -> None:
    fd = create_segment("test", MAX_BLOB + 1)
    with pytest.raises(ValueError, match="a blob has"):
        read_blob(fd)
    os.close(fd)
