# SPDX-License-Identifier: Apache-2.0
"""Whose is an fd? The fd table outlives its workers, so what a dead one left must be told apart.

Files are in the shared tables. Sockets, eventfds and epoll instances are zmq's and the pool's own:
no op creates one, and workers start one at a time, so those that appear while a worker starts
are that worker's. Sockets that zmq accepts later bear the name of the worker's listener.
"""

import os
import socket
from typing import Any, Final

from vfsd.transport.native import ffi, lib

ROOM: Final = 4096


def table_end(proc_fd: int) -> int:
    """All fds of this process are below this number (FDSize in /proc/self/status)."""
    fd = os.open("self/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        status = os.read(fd, 8192)
    finally:
        os.close(fd)
    _, _, rest = status.partition(b"FDSize:")
    return int(rest.split(None, 1)[0])


def anonymous(proc_fd: int) -> set[int]:
    """The sockets, eventfds and epoll instances that are open."""
    ret: Any = ffi.new("int32_t[]", ROOM)
    count = lib.descriptors_anonymous(table_end(proc_fd), ret, ROOM)
    return set(ret[0 : min(count, ROOM)])


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
