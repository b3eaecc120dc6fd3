# SPDX-License-Identifier: Apache-2.0
"""Shared memory segments: memfds that the supervisor creates, and the pool and its workers map.

A segment is sealed against shrinking, so that a mapping of it never faults (SIGBUS), whatever a
process that holds the fd does. No segment can be executed except a blob that is made for execution.
Pages are allocated when they are first touched. Sizes are in bytes.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Any, Final

from vfsd.transport.native import check, ffi, lib

_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_FUTURE_WRITE_SEAL: Final = getattr(fcntl, "F_SEAL_FUTURE_WRITE", 0x10)  # Linux 5.1
_NOEXEC_SEAL: Final = getattr(os, "MFD_NOEXEC_SEAL", 0x8)  # Linux 6.3
_EXEC: Final = getattr(os, "MFD_EXEC", 0x10)  # Linux 6.3
MAX_BLOB: Final = 1 << 20


def create_segment(name: str, size: int) -> int:
    """A zeroed segment of fixed size; returns its fd."""
    return _create(name, lambda fd: os.ftruncate(fd, size), _SIZE_SEALS)


def create_blob(name: str, content: bytes, is_executable: bool = False) -> int:
    """A segment that holds `content` and can never change; returns its fd."""
    seals = _SIZE_SEALS | fcntl.F_SEAL_WRITE
    execution = _EXEC if is_executable else _NOEXEC_SEAL
    return _create(name, lambda fd: os.write(fd, content), seals, execution)


def create_published(name: str, size: int) -> tuple[int, Any]:
    """A zeroed segment that can be written only through the mapping returned with its fd.

    Processes cloned from this one inherit the mapping. A process that gets the fd can map it only
    to read it. (Before Linux 5.1 there is no such seal, and a holder of the fd can write.)
    """
    # map_segment() asks for this seal. Other seals would keep the mapping from being writable.
    fd = _create(name, lambda fd: os.ftruncate(fd, size), fcntl.F_SEAL_SHRINK)
    try:
        addr = map_segment(fd, size)
        _seal(fd, _SIZE_SEALS | _FUTURE_WRITE_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd, addr


def read_blob(fd: int) -> bytes:
    """The whole content of a segment made by create_blob()."""
    size = os.fstat(fd).st_size
    if size > MAX_BLOB:
        raise ValueError(f"a blob has {size} bytes; at most {MAX_BLOB} are allowed")
    return os.pread(fd, size, 0)


def is_segment(fd: int) -> bool:
    """Is `fd` a memfd that is sealed like these segments? Files of a tmpfs cannot have this
    seal."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False


def map_segment(fd: int, size: int, writable: bool = True) -> Any:
    """Map the first `size` bytes of a segment; returns a cffi `void *`.

    Refuses (EINVAL) an fd that is shorter than `size` or could still shrink. Unlike mmap.mmap, this
    function keeps no duplicate of the fd.
    """
    ret = ffi.new("void **")
    check(lib.shared_memory_map(fd, size, writable, ret))
    return ret[0]


def unmap_segment(addr: Any, size: int) -> None:
    check(lib.shared_memory_unmap(addr, size))


def _create(
    name: str, fill: Callable[[int], object], seals: int, execution: int = _NOEXEC_SEAL
) -> int:
    fd = _memfd(name, execution)
    try:
        fill(fd)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _memfd(name: str, execution: int) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | execution)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)


def _seal(fd: int, seals: int) -> None:
    """Add seals, without F_SEAL_FUTURE_WRITE where the kernel does not know it."""
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals & ~_FUTURE_WRITE_SEAL)
