# SPDX-License-Identifier: Apache-2.0
"""System calls that Python's os module does not have, or that it restricts."""

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EACCESS: Final = 0x200
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE = 0x01, 0x02, 0x08
FALLOC_ZERO_RANGE, FALLOC_INSERT, FALLOC_UNSHARE = 0x10, 0x20, 0x40
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IMMUTABLE, FS_APPEND, FS_NODUMP, FS_NOATIME = 0x10, 0x20, 0x40, 0x80
CAP_FSETID: Final = 4

_SYS_CAPGET, _SYS_CAPSET = 125, 126
_CAPABILITY_VERSION: Final = 0x20080522
_SYS_GETDENTS64: Final = 217
_SYS_FACCESSAT2: Final = 439


def _check(result: int, *what: object) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *what)
    return result


def renameat2(old: str, new: str, flags: int) -> None:
    names = os.fsencode(old), os.fsencode(new)
    _check(_libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], ctypes.c_uint(flags)))


def link_target(old: str, new: str) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, a flag that os.link passes only with a dir_fd."""
    names = os.fsencode(old), os.fsencode(new)
    _check(_libc.linkat(AT_FDCWD, names[0], AT_FDCWD, names[1], AT_SYMLINK_FOLLOW))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def truncate(path: str, size: int) -> None:
    """truncate(2), also with sizes that os.truncate refuses."""
    _check(_libc.truncate(os.fsencode(path), ctypes.c_int64(size)))


def utimensat(
    path: str, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True
) -> None:
    times = (ctypes.c_int64 * 4)(*atime, *mtime)
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def access(path: str, mode: int, flags: int = 0) -> None:
    """faccessat2(2), with the errno that os.access hides."""
    _check(_libc.syscall(_SYS_FACCESSAT2, AT_FDCWD, os.fsencode(path), mode, flags))


def raise_capability(number: int) -> None:
    """Make a capability below 32 effective in this thread; it must be permitted."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low halves, then high ones
    _check(_libc.syscall(_SYS_CAPGET, header, sets))
    sets[0] |= 1 << number
    _check(_libc.syscall(_SYS_CAPSET, header, sets))


def getdents(fd: int, size: int = 32768) -> list[tuple[int, int, int, bytes]]:
    """The next entries of a directory: (ino, offset after the entry, type, name)."""
    buffer = ctypes.create_string_buffer(size)
    got = _check(_libc.syscall(_SYS_GETDENTS64, fd, buffer, size))
    return list(_parse_dirents(buffer.raw[:got]))


def _parse_dirents(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at = 0
    while at < len(data):
        ino, offset, length, kind = struct.unpack_from("<QqHB", data, at)
        yield ino, offset, kind, data[at + 19 : at + length].split(b"\0", 1)[0]
        at += length


def get_flags(path: str) -> int:
    """The inode flags of a file, as lsattr(1) shows them."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))[0])
    finally:
        os.close(fd)


def set_flags(path: str, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i", flags))
    finally:
        os.close(fd)


def clear_flags(path: str) -> None:
    """Clear the inode flags that keep a file from being removed."""
    set_flags(path, get_flags(path) & ~(FS_IMMUTABLE | FS_APPEND))


def lock(fd: int, command: int, kind: int, start: int = 0, length: int = 0) -> tuple[int, ...]:
    """A lock command of fcntl(2); returns (type, whence, start, length, pid) as the kernel leaves
    them."""
    packed = struct.pack("<hhxxxxqqixxxx", kind, os.SEEK_SET, start, length, 0)
    return struct.unpack("<hhxxxxqqixxxx", fcntl.fcntl(fd, command, packed))
