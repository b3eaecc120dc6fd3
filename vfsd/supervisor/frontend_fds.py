# SPDX-License-Identifier: Apache-2.0
"""Checks of the fds that a front-end sends, before anything is mapped from or written to them.

They end in the fd table of the sandbox, where a worker that is taken over can use them for more
than what they were sent for. So an eventfd must be one, the in-flight record must be a sealed
memfd, and memory must be a regular file that is open for more than its path, or a character device
(DAX). What is not refused, because VMMs do it (a memory-backend-file on a disk, as for a virtual
NVDIMM or with libvirt's source type='file'): memory in a file of any file system. Through its fd a
worker that may open file handles by itself reaches every file of that file system. The operator is
warned of that; a memfd, tmpfs or hugetlbfs has nothing to reach.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vfsd.transport.errors import ProtocolError
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.vhost_user import Inflight, MemoryRegion, MemoryTable, Message, VringFd

EVENTFD = "anon_inode:[eventfd]"


def check_fds(message: Message) -> None:
    """Raise ProtocolError unless each fd of `message` is what it has to be."""
    with _looking(message):
        _check(message)


@contextmanager
def _looking(message: Message) -> Iterator[None]:
    """The front-end may serve the file system that is asked: what fails there is its mistake."""
    try:
        yield
    except OSError as error:
        raise ProtocolError(f"{message.name}: cannot look at the fd: {error.strerror}") from None


def _check(message: Message) -> None:
    payload = message.payload
    if isinstance(payload, VringFd):
        for fd in message.fds:
            if _link(fd) != EVENTFD:
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


def memory_hazard(message: Message) -> str | None:
    """What the operator should know of the memory in `message`, whose fds check_fds() has seen, if
    workers open file handles by themselves. Raises as check_fds()."""
    if not isinstance(message.payload, MemoryTable | MemoryRegion):
        return None
    with _looking(message):
        files = [_link(fd) for fd in message.fds if not _is_memory(fd)]
    return next(
        (
            f"guest memory is in the file {path!r}, and workers open file handles: whoever takes a"
            " worker over can open every file of that file system; use a memfd"
            " (memory-backend-memfd), tmpfs or hugetlbfs, or --inode-file-handles=signed"
            for path in files
        ),
        None,
    )


def _link(fd: int) -> str:
    """What an fd refers to; a path may be longer than what can be read (ENAMETOOLONG)."""
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError as error:
        return error.strerror or ""


def _is_memory(fd: int) -> bool:
    """Is it a device, or a file of a memfd, tmpfs or hugetlbfs, which alone have seals?"""
    if stat.S_ISCHR(_look(fd)[0]):
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _check_size(message: Message, fd: int, size: int) -> None:
    """Memory must come from a file that is large enough; a device (DAX) does not tell its size."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        raise ProtocolError(f"{message.name}: the fd is of a path alone (O_PATH), not of memory")
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
