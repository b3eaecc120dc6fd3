# SPDX-License-Identifier: Apache-2.0
"""The state holder: a process that keeps the fds of a running VM where systemd does not.

THEORY

Purpose. With --keep-state=DIR the fds that fd_store.py is about are kept by a process of our own,
which belongs to no daemon: it leads a session of its own, and outlives every process of the daemon.

Protocol. The holder understands the messages of systemd's fd store (sd_notify(3)): FDSTORE,
FDSTOREREMOVE, FDNAME and BARRIER, on the socket DIR/notify. On DIR/holder it listens for daemons:
  FETCH   the holder sends each fd with its name, one packet each, and closes the connection;
  HOLD    the connection stays open, and shows the holder that a daemon lives.
A daemon fetches first, when the numbers of its fds are still free, and holds later.

Life. The first daemon that finds no holder starts one. A holder ends when no daemon holds a
connection and no VM is connected: a VM that goes away while there is no daemon ends its holder too.
A holder that is killed is not replaced before the next start of the daemon: from then on the VM no
longer outlives the daemon.

Trust. A user that may write to the sockets may take the memory of the guest. The sockets have mode
0600, and belong to the user that starts the daemon. The holder is confined as keeper and supervisor
are, and what it stores is bounded.
"""

import os
import select
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from vfsd.transport.errors import OperatorError
from vfsd.transport.fd_table import close_all_but
from vfsd.transport.native import lib
from vfsd.transport.passed_fds import close_fds, decode_fds, encode_fds
from vfsd.transport.process_title import setproctitle
from vfsd.transport.socket_path import addressed

FETCH, HOLD = b"F", b"H"
FDS_MAX: Final = 4096
MESSAGE_MAX: Final = 256  # bytes
_ROOM: Final = socket.CMSG_SPACE(253 * 4)


def fetch_fds(folder: str) -> dict[str, int]:
    """The fds that the holder of `folder` keeps, by name; empty if there is no holder."""
    fds: dict[str, int] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        if not _connect(sock, folder):
            return fds
        sock.send(FETCH)
        while True:
            name, ancillary, _, _ = sock.recvmsg(MESSAGE_MAX, _ROOM, socket.MSG_CMSG_CLOEXEC)
            if not name:
                return fds
            (fds[name.decode()],) = decode_fds(ancillary)


def hold(folder: str, confine: Callable[[], None], title: str) -> socket.socket:
    """Show the holder of `folder` that a daemon lives, as long as the returned socket is open. If
    there is no holder, start one, which confines itself by `confine`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if _connect(sock, folder):
        sock.send(HOLD)
        return sock
    sock.close()
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
        raise OperatorError(
            f"--keep-state: cannot make the socket '{path}': {error.strerror}; give a folder that"
            " exists, is writable, and belongs to this instance alone"
        ) from None
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
            os.dup2(0, 2)
            StateHolder(listener, notify, daemon).run()
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
            self._daemons = [d for d in self._daemons if not self._has_ended(d, ready)]
            if not self._daemons and ready & set(self._vms()):
                self._drop([name for name, _ in self._stored])

    def _has_ended(self, daemon: socket.socket, ready: set[int]) -> bool:
        if daemon.fileno() not in ready:
            return False
        data = b""
        with suppress(OSError):
            data = daemon.recv(1)
        if not data:
            daemon.close()
        return not data

    def _vms(self) -> list[int]:
        """The stored fds that are connections of a VM."""
        return [fd for _, fd in self._stored if _is_connection(fd)]

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(1.0)
        kind = b""
        with suppress(OSError):
            kind = connection.recv(1)
        if kind == HOLD:
            self._daemons.append(connection)
            return
        with suppress(OSError):
            if kind == FETCH:
                for name, fd in self._stored:
                    connection.sendmsg([name.encode()], encode_fds([fd]))
        connection.close()

    def _take_message(self) -> None:
        data, ancillary, _, _ = self._notify.recvmsg(MESSAGE_MAX, _ROOM, socket.MSG_CMSG_CLOEXEC)
        fds = decode_fds(ancillary)
        try:
            fields = _fields(data)
            name = fields.get("FDNAME", "")
            if "FDSTOREREMOVE" in fields:
                self._drop([name])
            elif "FDSTORE" in fields and len(fds) == 1 and self._is_new(fds[0]):
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


def _fields(data: bytes) -> Mapping[str, str]:
    lines = data.decode(errors="replace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _is_connection(fd: int) -> bool:
    """Is it a connected unix stream socket, as that of a VMM is?"""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    sock = socket.socket(fileno=fd)
    try:
        return sock.type == socket.SOCK_STREAM
    finally:
        sock.detach()
