# SPDX-License-Identifier: Apache-2.0
"""The fds with which a pool is started, and a check that they are of the right kinds: they come
from the supervisor, which may have been taken over."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Sequence

from vfsd.transport.job import SEGMENTS, TABLES_BEFORE
from vfsd.transport.shared_memory import is_segment


def check_fds(fds: Sequence[int], workers: int) -> None:
    """OSError (EINVAL) unless these are the fds of a pool (job.POOL_FDS) with this number of
    workers."""
    segments = [is_segment] * len(SEGMENTS)
    kinds = [is_channel, _is_pipe_to_write, *segments, *[_is_listener] * workers]
    if len(fds) == len(kinds) + 1:
        kinds.append(is_channel)
    elif len(fds) > len(kinds):
        kinds += [is_segment] * TABLES_BEFORE
    if len(fds) != len(kinds) or not all(map(_is_kind, kinds, fds)):
        raise OSError(errno.EINVAL, "the fds of MAKE_POOL are not those of a pool")


def _is_kind(kind: Callable[[int], bool], fd: int) -> bool:
    try:
        return kind(fd)
    except OSError:
        return False


def is_channel(fd: int) -> bool:
    return _is_unix_socket(fd, socket.SOCK_SEQPACKET, listening=False)


def _is_pipe_to_write(fd: int) -> bool:
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    return stat.S_ISFIFO(os.fstat(fd).st_mode) and access == os.O_WRONLY


def _is_listener(fd: int) -> bool:
    return _is_unix_socket(fd, socket.SOCK_STREAM, listening=True)


def _is_unix_socket(fd: int, kind: int, listening: bool) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    sock = socket.socket(fileno=fd)
    try:
        is_listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        return (sock.family, sock.type, is_listening) == (socket.AF_UNIX, kind, listening)
    finally:
        sock.detach()
