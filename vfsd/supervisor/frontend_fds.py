# SPDX-License-Identifier: Apache-2.0
"""Checks of the fds that a front-end sends, before anything is mapped from or written to them.

These fds end in the fd table of the sandbox, where a worker that is taken over can use them for
other purposes than they were sent for. So the fd for an eventfd must be an eventfd, the in-flight
record must be a sealed memfd, and memory must be a regular file that was not opened with O_PATH, or
a character device (DAX).

Memory in a file of any file system is not refused, because VMMs use it (a memory-backend-file on a
disk, as for a virtual NVDIMM or with libvirt's source type='file'). Through the fd of that file, a
worker that may open file handles by itself reaches every file of the file system. The operator is
warned of such memory. With a memfd, tmpfs or hugetlbfs there are no files to reach.
"""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vfsd.transport.errors import ProtocolError
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.vhost_user import Message
from vfsd.transport.vhost_user_payloads import Inflight, MemoryRegion, MemoryTable, VringFd

EVENTFD = "anon_inode:[eventfd]"


def check_fds(message: Message) -> None:
    """Raise ProtocolError unless each fd of `message` has the kind that the message needs."""
    with _looking(message):
        _check(message)


@contextmanager
def _looking(message: Message) -> Iterator[None]:
    """Turn an OSError into a ProtocolError: the front-end may serve the file system that the fd
    belongs to, so an error of that file system is the front-end's mistake."""
    try:
        yield
    except OSError as error:
        raise ProtocolError(f"{message.name}: cannot examine the fd: {error.strerror}") from None


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


def is_frontend(fd: int) -> bool:
    """Is it a connected Unix stream socket, as that of a front-end is?"""
    if not stat.S_ISSOCK(_look(fd)[0]):
        return False
    sock = socket.socket(fileno=fd)
    is_connected = False
    with suppress(OSError):
        sock.getpeername()  # also of a front-end that has closed its end
        is_connected = True
    kind = sock.family, sock.type
    sock.detach()
    return is_connected and kind == (socket.AF_UNIX, socket.SOCK_STREAM)


def memory_hazard(message: Message) -> str | None:
    """A warning about the memory in `message`, or None; for a pool whose workers open file handles
    by themselves. check_fds() must have accepted `message`; raises ProtocolError as it does."""
    if not isinstance(message.payload, MemoryTable | MemoryRegion):
        return None
    with _looking(message):
        files = [_link(fd) for fd in message.fds if not _is_memory(fd)]
    return next(
        (
            f"guest memory is in the file {path!r}, and workers open file handles: an attacker who"
            " takes over a worker can open every file of that file system; use a memfd"
            " (memory-backend-memfd), tmpfs or hugetlbfs, or --inode-file-handles=signed"
            for path in files
        ),
        None,
    )


def _link(fd: int) -> str:
    """What an fd refers to. If the path is too long to be read, the text of ENAMETOOLONG."""
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError as error:
        return error.strerror or ""


def _is_memory(fd: int) -> bool:
    """Is the fd of a device, a memfd, tmpfs or hugetlbfs? Only files of the last three have
    seals."""
    if stat.S_ISCHR(_look(fd)[0]):
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _check_size(message: Message, fd: int, size: int) -> None:
    """Memory must come from a file that is large enough. The size of a device (DAX) cannot be
    read."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        raise ProtocolError(
            f"{message.name}: the fd was opened with O_PATH; expected an fd that can be mapped"
        )
    mode, found = _look(fd)
    if stat.S_ISCHR(mode):
        return
    if not stat.S_ISREG(mode):
        raise ProtocolError(
            f"{message.name}: the fd is neither a regular file nor a character device"
        )
    if found < size:
        raise ProtocolError(f"{message.name}: the file has {found} bytes; expected at least {size}")


def _look(fd: int) -> tuple[int, int]:
    """st_mode and size of a file, without a request to the file system, which the front-end may
    serve."""
    mode, size = ffi.new("uint32_t *"), ffi.new("uint64_t *")
    check(lib.shared_memory_look(fd, mode, size))
    return int(mode[0]), int(size[0])


def _check_seal(message: Message, fd: int) -> None:
    """The in-flight record must be sealed against shrinking, as every back-end makes it: otherwise
    the front-end could truncate the record while a worker uses it."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if not seals & fcntl.F_SEAL_SHRINK:
        raise ProtocolError(f"{message.name}: the record is not sealed; expected F_SEAL_SHRINK")
