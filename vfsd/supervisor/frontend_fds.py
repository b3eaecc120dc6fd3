# SPDX-License-Identifier: Apache-2.0
"""Checks of the fds that a front-end sends, before anything is mapped from or written to them."""

import fcntl
import stat
from pathlib import Path

from vfsd.transport.errors import ProtocolError
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.vhost_user import Inflight, MemoryRegion, MemoryTable, Message, VringFd

EVENTFD = "anon_inode:[eventfd]"


def check_fds(message: Message) -> None:
    """Raise ProtocolError unless each fd of `message` is what it has to be."""
    payload = message.payload
    if isinstance(payload, VringFd):
        for fd in message.fds:
            if str(Path(f"/proc/self/fd/{fd}").readlink()) != EVENTFD:
                raise ProtocolError(f"{message.name}: the fd is not an eventfd")
    elif isinstance(payload, Inflight):
        for fd in message.fds:
            _check_size(message, fd, payload.mmap_offset + payload.mmap_size)
            _check_seal(message, fd)
    elif isinstance(payload, MemoryTable):
        for fd, region in zip(message.fds, payload.regions, strict=True):
            _check_size(message, fd, region.offset + region.size)
    elif isinstance(payload, MemoryRegion):
        for fd in message.fds:
            _check_size(message, fd, payload.region.offset + payload.region.size)


def _check_size(message: Message, fd: int, size: int) -> None:
    """Memory must come from a file that is large enough; a device (DAX) does not tell its size."""
    mode, found = _look(fd)
    if stat.S_ISCHR(mode):
        return
    if not stat.S_ISREG(mode):
        raise ProtocolError(f"{message.name}: the fd is no memory")
    if found < size:
        raise ProtocolError(f"{message.name}: {size} bytes of a file of {found}")


def _look(fd: int) -> tuple[int, int]:
    """st_mode and size of a file, without asking a file system that the front-end may serve."""
    mode, size = ffi.new("uint32_t *"), ffi.new("uint64_t *")
    check(lib.shared_memory_look(fd, mode, size))
    return int(mode[0]), int(size[0])


def _check_seal(message: Message, fd: int) -> None:
    """The in-flight record is one that a back-end made, and cannot be cut short under a worker."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if not seals & fcntl.F_SEAL_SHRINK:
        raise ProtocolError(f"{message.name}: the record could shrink; it is not sealed")
