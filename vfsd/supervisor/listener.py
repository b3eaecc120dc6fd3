# SPDX-License-Identifier: Apache-2.0
"""The socket that the VMM connects to: made at a path, or inherited as an fd. With --connect it is
the VMM that listens (dialer.py), and a Listener has no socket.

Each mistake that an operator can make here has an error message of its own.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vfsd.supervisor.options import Options
from vfsd.supervisor.pid_file import InUseError, PidFile
from vfsd.transport.errors import OperatorError
from vfsd.transport.socket_path import ADDRESS_MAX, addressed

BACKLOG: Final = 1  # one VMM is served; the next VMM waits in the backlog


@dataclass(frozen=True)
class Listener:
    """The socket. `listening`: another connection may follow, which is not so for an inherited
    socket that is already connected."""

    socket: socket.socket | None  # None with --connect
    listening: bool
    path: str | None  # of our socket or the VMM's; None for an inherited socket
    inode: int | None = None  # of the file at `path` if it is ours, and to be removed at the end
    pid_file: PidFile | None = None  # None for an inherited socket and with --connect
    place: str = "the inherited socket"  # for the log: the path, and which users may connect

    def accepted(self, fds: Iterable[int]) -> int | None:
        """The first of `fds` that is a connection to this socket, or to the VMM's, or None."""
        if not self.listening:
            return None
        for fd in fds:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            other = socket.socket(fileno=fd)
            is_ours = _is_connected(other) and _is_connection_of(self, other)
            other.detach()
            if is_ours:
                return fd
        return None

    def remove(self) -> None:
        """Remove the socket file and the pid file, unless other files have taken their place."""
        if self.path is None or self.inode is None:
            return
        with suppress(FileNotFoundError):
            if os.lstat(self.path).st_ino == self.inode:
                Path(self.path).unlink()
        if self.pid_file:  # last: its lock keeps other daemons from the path
            self.pid_file.remove()


def open_listener(options: Options) -> Listener:
    """The socket that the options name, or an OperatorError."""
    if options.fd is not None:
        listener = _inherited(options.fd)
        if options.keep_listening and not listener.listening:
            raise OperatorError(
                f"{options.given['keep_listening']}: --fd {options.fd} is a connection, after"
                " which there is no other; pass a listening socket or leave the option out"
            )
        return listener
    if options.connect is not None:
        return Listener(None, True, options.connect)
    assert options.socket_path is not None
    return _at_path(options.socket_path, options.socket_group)


def inherited_listener(options: Options, fd: int | None, locks: Sequence[int]) -> Listener:
    """The socket of the daemon whose place this one takes, and the fd of its locked pid file, the
    first of `locks`."""
    if options.connect is not None or fd is None:
        return Listener(None, True, options.connect)
    if options.socket_path is None:
        return _inherited(fd)
    path = str(Path(options.socket_path).absolute())
    pid_file = PidFile(f"{path}.pid", locks[0])
    place = f"{path} ({_connects(options.socket_group)})"
    return Listener(socket.socket(fileno=fd), True, path, os.lstat(path).st_ino, pid_file, place)


def _inherited(fd: int) -> Listener:
    what = f"--fd: file descriptor {fd}"
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        raise OperatorError(f"{what} is not open; pass a socket from the parent process") from None
    if not stat.S_ISSOCK(mode):
        raise OperatorError(f"{what} is not a socket; pass a listening unix stream socket")
    sock = socket.socket(fileno=fd)
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        raise OperatorError(f"{what} is not a unix stream socket; pass a listening one")
    os.set_inheritable(fd, False)
    listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if not listening and not _is_connected(sock):
        raise OperatorError(f"{what} neither listens nor is connected; call listen() on it first")
    return Listener(sock, listening, None)


def _is_connection_of(listener: Listener, connected: socket.socket) -> bool:
    if listener.socket:
        return bool(connected.getsockname() == listener.socket.getsockname())
    # The VMM may have bound another path of the same file.
    assert listener.path
    return Path(os.fsdecode(connected.getpeername())).name == Path(listener.path).name


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _at_path(path: str, group: str | None) -> Listener:
    what = f"--socket-path: '{path}'"
    length = len(os.fsencode(Path(path).name))
    if length > ADDRESS_MAX:
        raise OperatorError(
            f"{what}: the name of the socket has {length} bytes; it may have {ADDRESS_MAX}"
        )
    if not Path(path).absolute().parent.is_dir():
        raise OperatorError(f"{what}: its folder does not exist; create it first")
    pid_file = _claim(path, what)
    try:
        return _listen(path, what, group, pid_file)
    except BaseException:
        pid_file.remove()
        os.close(pid_file.fd)
        raise


def _claim(path: str, what: str) -> PidFile:
    try:
        return PidFile.claim(f"{Path(path).absolute()}.pid")
    except InUseError:
        raise _in_use(what) from None
    except OperatorError as error:
        raise OperatorError(f"{what}: {error}") from None


def _in_use(what: str) -> OperatorError:
    return OperatorError(f"{what} is in use by a running program; stop it or choose another path")


def _listen(path: str, what: str, group: str | None, pid_file: PidFile) -> Listener:
    _remove_stale(path, what)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o007 if group else 0o077)
    try:
        with addressed(path) as address:
            sock.bind(address)
        sock.listen(BACKLOG)  # at once: tools connect as soon as there is a file
    except OSError as error:
        raise OperatorError(f"{what}: cannot listen there: {error.strerror}") from None
    finally:
        os.umask(mask)
    inode = os.lstat(path).st_ino
    place = f"{Path(path).absolute()} ({_connects(group)})"
    listener = Listener(sock, True, str(Path(path).absolute()), inode, pid_file, place)
    if group:
        _give_to_group(listener, group)
    return listener


def _connects(group: str | None) -> str:
    """For the log: the users who may connect to our socket. QEMU reports only "Permission
    denied"."""
    who = f"user {uid} and root" if (uid := os.geteuid()) else "root"
    if group:
        return f"for {who}, and the group {group!r}"
    return f"for {who} alone: --socket-group lets a group connect"


def _remove_stale(path: str, what: str) -> None:
    """Remove a socket file on which no process listens any more."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OperatorError(f"{what}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise OperatorError(f"{what} exists and is not a socket; remove it or choose another path")
    if _is_in_use(path, what):
        raise _in_use(what)
    try:
        Path(path).unlink()
    except OSError as error:
        raise OperatorError(f"{what}: cannot remove the stale socket: {error.strerror}") from None


def _is_in_use(path: str, what: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        with addressed(path) as address:
            error = probe.connect_ex(address)
    if error in (0, errno.EAGAIN, errno.EINPROGRESS):  # EAGAIN: its backlog is full
        return True
    if error in (errno.ECONNREFUSED, errno.ENOENT):
        return False
    raise OperatorError(f"{what} exists, and connecting to it failed: {os.strerror(error)}")


def _give_to_group(listener: Listener, group: str) -> None:
    import grp  # noqa: PLC0415 - few daemons have --socket-group

    assert listener.path is not None
    try:
        _change_group(listener.path, listener.inode, grp.getgrnam(group).gr_gid)
    except (KeyError, OSError) as error:
        listener.remove()
        if listener.socket:
            listener.socket.close()
        reason = error.strerror if isinstance(error, OSError) else "there is no such group"
        raise OperatorError(f"--socket-group: '{group}': {reason}") from None


def _change_group(path: str, inode: int | None, gid: int) -> None:
    """Change the group of our socket file, and not of a file that was put in its place."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_ino != inode:
            raise OSError(errno.ESTALE, f"'{path}' was replaced by another file")
        os.chown(f"/proc/self/fd/{fd}", -1, gid)
    finally:
        os.close(fd)
