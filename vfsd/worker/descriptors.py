# SPDX-License-Identifier: Apache-2.0
"""Whose is an fd? The fd table outlives its workers, so what a dead one left must be told apart.

Files are in the shared tables. Sockets, eventfds and epoll instances are zmq's and the pool's own:
no op creates one, and workers start one at a time, so those that appear while a worker starts
are that worker's. Sockets that zmq accepts later bear the name of the worker's listener.

What an fd is, its link in /proc says. Nothing here looks at the file itself: a file system of the
share that hangs would hold up the pool.
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
ANONYMOUS: Final = ("socket:[", "anon_inode:")  # what has a path begins with "/"


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
    """An int32_t[] that `read(array, room)` has filled, and how many there are: as many as fit,
    whose number may grow meanwhile."""
    room = ROOM
    while True:
        ret: Any = ffi.new("int32_t[]", room)
        count = read(ret, room)
        if count <= room:
            return ret, count
        room = count + ROOM


def outside_tables(proc_fd: int, tables: Tables) -> dict[int, str]:
    """What is open and in no shared table: number -> link in /proc. That is the identity of a
    socket ("socket:[INODE]"), of a file its path, of an eventfd only its kind."""
    end = table_end(proc_fd)
    known: Any = ffi.new("uint8_t[]", end)
    held = read_array(lambda ret, room: lib.inode_table_fds(tables.inodes, ret, room))
    lib.descriptors_note(known, end, *held)
    held = read_array(lambda ret, room: lib.file_table_fds(tables.files, ret, room))
    lib.descriptors_note(known, end, *held)
    others, count = read_array(lambda ret, room: lib.descriptors_others(known, end, ret, room))
    found = {}
    for fd in others[0:count]:
        with suppress(OSError):  # closed meanwhile
            found[fd] = os.readlink(f"self/fd/{fd}", dir_fd=proc_fd)
    return found


def anonymous(fds: dict[int, str]) -> dict[int, str]:
    """The sockets, eventfds and epoll instances among outside_tables()."""
    return {fd: link for fd, link in fds.items() if link.startswith(ANONYMOUS)}


def is_fd_folder(link: str, pid: int) -> bool:
    """Is this the link to /proc/PID/fd, of a process that lives or is dead?"""
    return re.fullmatch(rf"(/proc)?/{pid}/fd( \(deleted\))?", link) is not None


def bound_name(fd: int) -> str | bytes | None:
    """The address of a socket; None if `fd` is no socket, or closed meanwhile."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        name: str | bytes = sock.getsockname()
    except OSError:
        return None
    finally:
        sock.detach()  # it is not ours to close
    return name
