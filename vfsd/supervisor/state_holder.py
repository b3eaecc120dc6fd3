# SPDX-License-Identifier: Apache-2.0
"""The state holder: a process that keeps the fds of a running VM where systemd does not.

THEORY

Purpose. With --keep-state=DIR the fds that fd_store.py is about are kept by a process of our own,
which belongs to no daemon: it leads a session of its own, and outlives every process of the daemon.

Protocol. The holder understands the messages of systemd's fd store (sd_notify(3)): FDSTORE,
FDSTOREREMOVE, FDNAME and BARRIER, on the socket DIR/notify. On DIR/holder it listens for daemons:
  FETCH   the holder sends each fd with its name, one packet each, and then END; or BUSY, if a
          daemon lives;
  HOLD    the holder answers HOLD. The connection stays open, and shows the holder that a daemon
          lives.
A daemon locks DIR/lock, so that two daemons do not start at once. The daemon fetches first, when
the numbers of its fds are still free, and holds later. A holder that ends while a daemon connects
does not answer, and the daemon starts another holder.

Life. The first daemon that finds no holder starts one. A holder ends when no daemon holds a
connection and no VM is connected: a VM that goes away while there is no daemon ends its holder too.
A holder that is killed is not replaced before the next start of the daemon: from then on the VM no
longer outlives the daemon, and the log says so. A holder that does not answer (SIGSTOP) keeps a
daemon from starting, and does not keep a daemon from serving (systemd.py).

Trust. A user that may write to the sockets may take the memory of the guest. The sockets have mode
0600, and belong to the user that starts the daemon. The holder is confined as keeper and supervisor
are, and what it stores is bounded. A supervisor that was taken over can store any fd under any
name. So the holder refuses names that are not ours, and a daemon that fetches passes over what it
has no room for: a start must not fail because of what is kept.
"""

import errno
import fcntl
import os
import resource
import select
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from vfsd.supervisor.fd_store import FDS_MAX, PREFIX
from vfsd.supervisor.frontend_fds import is_frontend
from vfsd.transport.errors import OperatorError
from vfsd.transport.fd_table import close_all_but
from vfsd.transport.native import lib
from vfsd.transport.passed_fds import close_fds, decode_fds, encode_fds
from vfsd.transport.process_title import setproctitle
from vfsd.transport.socket_path import addressed

FETCH, HOLD, END, BUSY = b"F", b"H", b"E", b"B"
MESSAGE_MAX: Final = 256  # bytes
ANSWER_SECONDS: Final = 10.0  # a holder that has not answered after this time hangs
_ROOM: Final = socket.CMSG_SPACE(253 * 4)


def claim(folder: str) -> int:
    """Lock `folder` for this daemon; returns the fd of the lock. The launcher alone has that fd, so
    the lock lasts until no process of the daemon serves any more.

    OperatorError if another daemon has the lock, or if another user can put a socket into the
    folder: this process takes fds from there while it still has its privileges.
    """
    try:
        found = Path(folder).stat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if found.st_uid not in {0, os.geteuid()} or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(errno.EPERM, "another user can write to it")
        return _locked(str(Path(folder, "lock")))
    except BlockingIOError:
        raise _in_use(folder) from None
    except OSError as error:
        raise _unusable(f"'{folder}': {error.strerror}") from None


def _locked(path: str) -> int:
    """A number above those of the VM's fds, which must be free: see kept_vm.py."""
    lowest = min(FDS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    finally:
        os.close(fd)


def _in_use(folder: str) -> OperatorError:
    return OperatorError(
        f"--keep-state: '{folder}' is in use by a running daemon; stop that daemon, or give each"
        " instance a folder of its own"
    )


def _unusable(what: str) -> OperatorError:
    return OperatorError(
        f"--keep-state: {what}; give a folder that exists, to which only this user can write, and"
        " which belongs to this instance alone"
    )


def fetch_fds(folder: str) -> Sequence[tuple[str, int]]:
    """The fds that the holder of `folder` keeps, with their names; empty if there is no holder.
    OperatorError if another daemon uses the holder, or if the holder does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        if not _connect(sock, folder):
            return ()
        with suppress(ConnectionError), _answering(folder):  # it may be ending
            sock.send(FETCH)
            return _receive_fds(sock, folder)
    return ()


def _receive_fds(sock: socket.socket, folder: str) -> Sequence[tuple[str, int]]:
    fds: list[tuple[str, int]] = []
    has_room = True
    while True:
        name, ancillary, flags, _ = sock.recvmsg(MESSAGE_MAX, _ROOM, socket.MSG_CMSG_CLOEXEC)
        fds += [(name.decode(errors="replace"), fd) for fd in decode_fds(ancillary)]
        has_room = has_room and not flags & socket.MSG_CTRUNC
        if name == END and has_room:
            return fds
        if name == BUSY:
            raise _in_use(folder)
        if name in (END, b""):  # our table is full, or the holder ended
            close_fds(fd for _, fd in fds)
            return ()


def hold(folder: str, confine: Callable[[], None], title: str) -> socket.socket:
    """Show the holder of `folder` that a daemon lives, as long as the returned socket is open. If
    there is no holder, start one, which confines itself by `confine`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if _connect(sock, folder):
        with suppress(ConnectionError), _answering(folder):  # it may be ending
            sock.send(HOLD)
            if _is_held(sock):
                return sock
    sock.close()
    sock = _start_holder(folder, confine, title)
    with _answering(folder):
        if _is_held(sock):
            return sock
    raise OperatorError(f"--keep-state: the state holder of '{folder}' could not be started")


def _is_held(sock: socket.socket) -> bool:
    sock.settimeout(ANSWER_SECONDS)
    answer = sock.recv(1)
    sock.settimeout(None)
    return answer == HOLD


@contextmanager
def _answering(folder: str) -> Iterator[None]:
    """Turn the silence of a holder into an OperatorError."""
    try:
        yield
    except TimeoutError:
        raise OperatorError(
            f"--keep-state: the state holder of '{folder}' does not answer; kill it, and the VM"
            " that it keeps is given up"
        ) from None


def _start_holder(folder: str, confine: Callable[[], None], title: str) -> socket.socket:
    listener = _bind(folder, "holder", socket.SOCK_SEQPACKET)
    listener.listen()
    notify = _bind(folder, "notify", socket.SOCK_DGRAM)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _be_holder(listener, notify, theirs, confine, title)
    for other in (listener, notify, theirs):
        other.close()
    os.waitpid(pid, 0)
    return ours


def notify_address(folder: str) -> str:
    return str(Path(folder, "notify"))


def _connect(sock: socket.socket, folder: str) -> bool:
    """Connect to the holder; False if there is none."""
    path = str(Path(folder, "holder"))
    sock.settimeout(ANSWER_SECONDS)
    try:
        with addressed(path) as address:
            sock.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError as error:
        raise OperatorError(f"--keep-state: '{path}': {error.strerror}") from None
    return True


def _bind(folder: str, name: str, kind: int) -> socket.socket:
    path = Path(folder, name)
    sock = socket.socket(socket.AF_UNIX, kind)
    mask = os.umask(0o177)
    try:
        if path.is_socket():
            path.unlink()
        with addressed(str(path)) as address:
            sock.bind(address)
    except OSError as error:
        sock.close()
        raise _unusable(f"cannot make the socket '{path}': {error.strerror}") from None
    finally:
        os.umask(mask)
    return sock


# In the holder.


def _be_holder(
    listener: socket.socket,
    notify: socket.socket,
    daemon: socket.socket,
    confine: Callable[[], None],
    title: str,
) -> NoReturn:
    """Run as the holder, in a process that no daemon is the parent of."""
    try:
        if os.fork() == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1):
                os.dup2(null, standard)
            close_all_but({0, 1, 2, listener.fileno(), notify.fileno(), daemon.fileno()})
            setproctitle(title)
            confine()
            lib.process_forget_code()
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            daemon.send(HOLD)
            os.dup2(0, 2)
            StateHolder(listener, notify, daemon).run()
    except BaseException as error:
        os.write(2, f"vfsd: state holder: {error!r}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(0)


class StateHolder:
    """What the holder does: run() returns when neither a daemon nor a VM is left."""

    def __init__(
        self, listener: socket.socket, notify: socket.socket, daemon: socket.socket
    ) -> None:
        self._listener = listener
        self._notify = notify
        self._daemons = [daemon]
        self._stored: list[tuple[str, int]] = []  # names and fds, in the order of their arrival

    def run(self) -> None:
        while self._daemons or self._vms():
            self._turn()

    def _turn(self) -> None:
        poll = select.poll()
        for sock in (self._listener, self._notify, *self._daemons):
            poll.register(sock, select.POLLIN)
        if not self._daemons:
            for vm in self._vms():
                poll.register(vm, select.POLLRDHUP)
        ready = {fd for fd, _ in poll.poll()}
        if self._notify.fileno() in ready:
            self._take_message()
        elif self._listener.fileno() in ready:
            self._accept()
        else:
            self._daemons = [d for d in self._daemons if not _has_ended(d)]
            if not self._daemons and ready & set(self._vms()):
                self._drop([name for name, _ in self._stored])

    def _vms(self) -> list[int]:
        """The stored fds that are connections of a VM."""
        return [fd for _, fd in self._stored if is_frontend(fd)]

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(1.0)
        kind = b""
        with suppress(OSError):
            kind = connection.recv(1)
        with suppress(OSError):
            if kind == HOLD:
                connection.send(HOLD)
                connection.settimeout(None)
                self._daemons.append(connection)
                return
            if kind == FETCH:
                connection.settimeout(ANSWER_SECONDS)
                self._give(connection)
        connection.close()

    def _give(self, connection: socket.socket) -> None:
        """Answer FETCH. Two daemons must not serve one VM."""
        self._daemons = [d for d in self._daemons if not _has_ended(d)]
        if self._daemons:
            connection.send(BUSY)
            return
        for name, fd in self._stored:
            connection.sendmsg([name.encode()], encode_fds([fd]))
        connection.send(END)

    def _take_message(self) -> None:
        data, ancillary, _, _ = self._notify.recvmsg(MESSAGE_MAX, _ROOM, socket.MSG_CMSG_CLOEXEC)
        fds = decode_fds(ancillary)
        try:
            fields = _fields(data)
            name = fields.get("FDNAME", "")
            if "FDSTOREREMOVE" in fields:
                self._drop([name])
            elif "FDSTORE" in fields and _is_ours(name) and len(fds) == 1 and self._is_new(fds[0]):
                self._stored.append((name, fds.pop()))
        finally:
            close_fds(fds)  # also that of BARRIER=1, whose sender waits for this

    def _is_new(self, fd: int) -> bool:
        if len(self._stored) >= FDS_MAX:
            return False
        return not any(lib.process_is_same_file(fd, other) for _, other in self._stored)

    def _drop(self, names: list[str]) -> None:
        close_fds(fd for name, fd in self._stored if name in names)
        self._stored = [row for row in self._stored if row[0] not in names]


def _has_ended(daemon: socket.socket) -> bool:
    """Has the other end been closed? Closes ours then."""
    data = b""
    with suppress(ConnectionError):
        try:
            data = daemon.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
    if not data:
        daemon.close()
    return not data


def _is_ours(name: str) -> bool:
    """Can a daemon read this name? All of ours are short ASCII texts."""
    return name.startswith(PREFIX) and name.isascii()


def _fields(data: bytes) -> Mapping[str, str]:
    lines = data.decode(errors="replace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)
