# SPDX-License-Identifier: Apache-2.0
"""Which fds of a process lead into a file system of the host?

open_by_handle_at(2) takes any fd to name the file system to look in, not only an fd of the share.
So only these fds may be left in the sandbox: the shared directory, /proc, which has no handles, and
fds that lead to no file system of the host, which are sockets, anonymous inodes, pipes and sealed
memfds.

A memfd is a file of the kernel's own tmpfs, which does have handles. But that file system finds a
file by its handle only after a process that had the file open asked for the handle, so a worker
finds only memfds whose handles it made itself.

/proc/self/exe is like an fd that cannot be closed. So the program is also a memfd: see the
supervisor's loader.py.
"""

import fcntl
import os
from collections.abc import Set as AbstractSet

from vfsd.transport.shared_memory import is_segment

HARMLESS = ("anon_inode:", "socket:", "pipe:")
MEMFD = "/memfd:"  # how the link of a memfd begins


def strangers(proc_fd: int, own: AbstractSet[int]) -> dict[int, str]:
    """The fds of this process, less `own`, that refer to a file, and what readlink(2) calls it.

    `proc_fd`: a /proc in which this process finds itself. This process must have one thread.
    """
    table = os.open("self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        # listdir() reads a duplicate, which is gone when it returns.
        fds = {int(name) for name in os.listdir(table)}  # noqa: PTH208 - pathlib would stay
        links = {
            fd: os.readlink(str(fd), dir_fd=table)
            for fd in sorted(fds - own - {table})
            if _is_open(fd)
        }
    finally:
        os.close(table)
    return {
        fd: link
        for fd, link in links.items()
        if not link.startswith(HARMLESS) and not is_segment(fd)
    }


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True
