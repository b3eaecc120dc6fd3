# SPDX-License-Identifier: Apache-2.0
"""The supervisor's end of the control channel to one worker: a ZMTP connection over a unix socket.

THEORY

Purpose. Commands go out and are repeated until they are answered; answers and events come in. The
other end is a zmq socket of a worker, which may die and be created again (transport/channel.py), so
the link connects again by itself. The worker may have been taken over: transport/zmtp.py parses the
bytes that the worker sends, and the caller answers a break of the protocol with break_off().

States. `waiting` (no socket; connects at `_connect_at`), `opening` (connected; the worker's READY
has not come, perhaps because the worker has not accepted the connection yet), `ready`. A connection
that is lost, or is not ready within HANDSHAKE_SECONDS, leads to `waiting` with a pause that doubles
from PAUSE_MIN to PAUSE_MAX seconds and is short again after a READY; break_off() leads to `waiting`
with a longer pause.

Memory. Received: one incomplete frame and one read (zmtp.py). To be sent: at most OUTGOING_BYTES; a
command that finds no room, or no READY, waits as `pending` and is sent later. The number of pending
commands depends on the supervisor alone, whatever the worker does.

File descriptors. fileno() is an epoll instance, level-triggered, that lives as long as the link;
the socket behind it is replaced at each connection. The link owns both fds. If the supervisor dies,
its successor closes them with its sweep.
"""

import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from vfsd.supervisor.clones import Owner
from vfsd.transport import zmtp
from vfsd.transport.control_messages import Content, decode_object, encode_object

RESEND_SECONDS: Final = 0.1
PAUSE_MIN: Final = 0.005  # seconds
PAUSE_MAX: Final = 0.1
PENANCE_MIN: Final = 0.1  # seconds, after the first break of the protocol
PENANCE_MAX: Final = 5.0
HANDSHAKE_SECONDS: Final = 30.0  # as in zmq
READ_BYTES: Final = 16384
OUTGOING_BYTES: Final = 65536


@dataclass
class _Pending:
    """A command that is not answered yet. The times are those of time.monotonic()."""

    message: bytes
    deadline: float
    resend_at: float


# The epolls of an earlier role of this process (clones.py). An epoll that is freed closes its fd.
_forgotten: list[select.epoll] = []


class WorkerLink(Owner):
    """One link, which connects to the listening socket `path` from its creation to close()."""

    def __init__(self, path: str) -> None:
        self.violations = 0  # breaks of the protocol; the caller resets it
        self._path = path
        self._epoll = select.epoll()
        self._socket: socket.socket | None = None
        self._peer, self._is_ready = zmtp.ZmtpPeer(), False
        self._outgoing = bytearray()
        self._pending: dict[int, _Pending] = {}
        self._pause = PAUSE_MIN
        self._connect_at = 0.0  # valid while there is no socket
        self._ready_by = 0.0  # valid while the socket is not ready
        self._rests_until: float | None = None  # not None while the socket is not read
        self._connect()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def forget(self) -> None:
        _forgotten.append(self._epoll)

    def close(self) -> None:
        self._disconnect(0)
        self._epoll.close()

    # Commands.

    def command(self, request_id: int, content: Content, timeout: float) -> None:
        """Send a command again and again until end() is called with its id. After `timeout` seconds
        expired() returns that id."""
        now = time.monotonic()
        message = zmtp.encode_message(encode_object({"id": request_id, **content}))
        self._pending[request_id] = _Pending(message, now + timeout, now)
        self._send_due(now)

    def end(self, request_id: int) -> None:
        """End a command: its answer has come and is valid, or the caller no longer waits."""
        self._pending.pop(request_id, None)

    def expired(self) -> list[int]:
        """Drop the commands whose deadline has passed; returns their ids."""
        now = time.monotonic()
        late = [key for key, pending in self._pending.items() if now >= pending.deadline]
        for key in late:
            del self._pending[key]
        return late

    # Answers and events.

    def receive(self) -> Content | None:
        """The next event or answer, None if there is none yet.

        Raises ProtocolError for anything that a worker of ours does not send. The caller must then
        call break_off().
        """
        while True:
            message = self._peer.next_message()
            self._note_ready()
            if message is not None:
                return decode_object(message)
            if not self._read():
                return None

    def is_pending(self, request_id: object) -> bool:
        """Does a command with this id wait for its answer? If not, the answer is a second one, or
        the caller has stopped waiting."""
        return type(request_id) is int and request_id in self._pending

    def break_off(self) -> None:
        """Close a connection that broke the protocol, and connect again after a longer pause."""
        self.violations += 1
        self._disconnect(min(PENANCE_MAX, PENANCE_MIN * 2.0 ** min(self.violations - 1, 10)))

    def rest(self, seconds: float) -> None:
        """Do not read the socket for `seconds`: the worker sends too much."""
        if self._socket and self._rests_until is None:
            self._epoll.unregister(self._socket)
            self._rests_until = time.monotonic() + seconds

    # Time.

    def tick(self) -> bool:
        """Do what is due: connect, abandon a handshake, send again. True if a rest is over: then
        messages may have arrived before the rest that fileno() does not announce."""
        now = time.monotonic()
        is_rested = self._rests_until is not None and now >= self._rests_until
        if self._socket and is_rested:
            self._rests_until = None
            self._epoll.register(self._socket, self._events())
        if self._socket is None and now >= self._connect_at:
            self._connect()
        elif self._socket and not self._is_ready and now >= self._ready_by:
            self._disconnect(self._pause)
        self._send_due(now)
        return is_rested

    def wake_at(self) -> float:
        """The time (of time.monotonic()) at which tick() or expired() must be called next."""
        times = [pending.deadline for pending in self._pending.values()]
        if self._socket is None:
            times.append(self._connect_at)
        elif self._is_ready:
            times += [pending.resend_at for pending in self._pending.values()]
        else:
            times.append(self._ready_by)
        if self._rests_until is not None:
            times.append(self._rests_until)
        return min(times, default=float("inf"))

    # The connection.

    def _connect(self) -> None:
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connecting.connect(self._path)
        except OSError:  # the worker does not listen, or too many connections wait for accept()
            connecting.close()
            self._disconnect(self._pause)
            return
        self._socket = connecting
        self._epoll.register(connecting, select.EPOLLIN)
        self._outgoing += zmtp.OPENING
        self._ready_by = time.monotonic() + HANDSHAKE_SECONDS
        self._flush()

    def _disconnect(self, pause: float) -> None:
        """Close the socket, and connect again after `pause` seconds."""
        if self._socket is not None:
            with suppress(OSError):  # during a rest the socket is not registered
                self._epoll.unregister(self._socket)
            self._socket.close()
        self._socket, self._rests_until = None, None
        self._peer, self._is_ready = zmtp.ZmtpPeer(), False
        self._outgoing.clear()
        self._connect_at = time.monotonic() + pause
        self._pause = min(PAUSE_MAX, 2 * self._pause)

    def _read(self) -> bool:
        """Read the socket once and pass the bytes to the parser; False if there are none now."""
        if self._socket is None or self._rests_until is not None or not self._flush():
            return False
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._peer.feed(data)
        if not data:
            self._disconnect(self._pause)
        return bool(data)

    def _note_ready(self) -> None:
        if self._peer.is_ready and not self._is_ready:
            self._is_ready = True
            self._pause = PAUSE_MIN
            for pending in self._pending.values():
                pending.resend_at = 0.0
            self._send_due(time.monotonic())

    def _send_due(self, now: float) -> None:
        """Send each command that is due, as far as there is room."""
        if not self._is_ready:
            return
        for pending in self._pending.values():
            if now < pending.resend_at:
                continue
            pending.resend_at = now + RESEND_SECONDS
            if len(self._outgoing) + len(pending.message) <= OUTGOING_BYTES:
                self._outgoing += pending.message
        self._flush()

    def _flush(self) -> bool:
        """Send as much as the socket takes; False if the connection turns out to be lost."""
        had = len(self._outgoing)
        try:
            while self._socket and self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._disconnect(self._pause)
            return False
        if had and self._socket and self._rests_until is None:
            self._epoll.modify(self._socket, self._events())
        return True

    def _events(self) -> int:
        return select.EPOLLIN | (select.EPOLLOUT if self._outgoing else 0)
