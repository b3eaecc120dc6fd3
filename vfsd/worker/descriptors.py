# SPDX-License-Identifier: Apache-2.0
"""Which fds belonged to a dead worker? The fd table that all workers share outlives them.

Files are in the shared tables. Sockets, eventfds and epoll instances belong to zmq or to the pool:
no op creates one, and workers start one at a time, so the ones that appear while a worker starts
are that worker's. Sockets that zmq accepts later have the name of the worker's listener.

The link of an fd in /proc says what the fd is. No function here looks at the file itself: a file
system of the share that hangs would hold up the pool.
"""

import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from vfsd.transport.native import ffi, lib
from vfsd.worker.tables import Tables

ROOM: Final = 1024
ANONYMOUS: Final = ("socket:[", "anon_inode:")  # the link of a file begins with "/"


def table_end(proc_fd: int) -> int:
    """All fds of this process are below this number (FDSize in /proc/self/status)."""
    fd = os.open("self/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        status = os.read(fd, 8192)
    finally:
        os.close(fd)
    _, _, rest = status.partition(b"FDSize:")
    return int(rest.split(None, 1)[0])


def read_array(read: Callable[[Any, int], int]) -> tuple[Any, int]:
    """An int32_t[] that `read(array, room)` has filled, and the number of its elements. `read`
    returns how many elements there are, which may change between two calls, and fills in those that
    fit."""
    room = ROOM
    while True:
        ret: Any = ffi.new("int32_t[]", room)
        count = read(ret, room)
        if count <= room:
            return ret, count
        room = count + ROOM


def outside_tables(proc_fd: int, tables: Tables) -> dict[int, str]:
    """The open fds that are in no shared table: number -> link in /proc. The link identifies a
    socket ("socket:[INODE]"); for a file it is the path, for an eventfd only the kind."""
    end = table_end(proc_fd)
    known: Any = ffi.new("uint8_t[]", end)
    held = read_array(lambda ret, room: lib.inode_table_fds(tables.inodes, ret, room))
    lib.descriptors_note(known, end, *held)
    held = read_array(lambda ret, room: lib.file_table_fds(tables.files, ret, room))
    lib.descriptors_note(known, end, *held)
    others, count = read_array(lambda ret, room: lib.descriptors_others(known, end, ret, room))
    found = {}
    for fd in others[0:count]:
        with suppress(OSError):  # the fd has been closed since then
            found[fd] = os.readlink(f"self/fd/{fd}", dir_fd=proc_fd)
    return found


def anonymous(fds: dict[int, str]) -> dict[int, str]:
    """The sockets, eventfds and epoll instances among outside_tables()."""
    return {fd: link for fd, link in fds.items() if link.startswith(ANONYMOUS)}


def is_fd_folder(link: str, pid: int) -> bool:
    """Is this the link to /proc/PID/fd, of a process that lives or is dead?"""
    return re.fullmatch(rf"(/proc)?/{pid}/fd( \(deleted\))?", link) is not None


def bound_name(fd: int) -> str | bytes | None:
    """The address of a socket; None if `fd` is not a socket, or is not open any more."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        name: str | bytes = sock.getsockname()
    except OSError:
        return None
    finally:
        sock.detach()  # keep `fd` open
    return name
