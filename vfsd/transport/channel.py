# SPDX-License-Identifier: Apache-2.0
"""The control channel between the supervisor and one worker: a pair of zmq DEALER sockets.

The worker is in its own mount and network namespace and reaches no path, so it binds the listening
unix socket that it inherited (ZMQ_USE_FD); the supervisor connects to that socket's path. A worker
that is created again binds the same listener and zmq reconnects by itself. What was under way is
lost then: so the supervisor repeats a command, with its id, until it is answered. Neither end ever
blocks: what does not fit in the queue is dropped, and counted.
"""

import os
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import zmq

from vfsd.transport.control_messages import Content, decode_object, encode_object
from vfsd.transport.errors import ProtocolError

RESEND_SECONDS: Final = 0.1
MAX_MESSAGE: Final = 65536  # bytes; zmq itself drops a peer that sends more
QUEUE: Final = 1000  # messages
EARLY: Final = 100  # messages of a worker that nobody is connected to yet


class _End:
    """What both ends do alike. `fileno()` is edge-triggered: receive until None after each event,
    and after each send."""

    def __init__(self) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, QUEUE),
            (zmq.RCVHWM, QUEUE),
            (zmq.MAXMSGSIZE, MAX_MESSAGE),
        ):
            self._socket.setsockopt(option, value)
        self.dropped = 0

    def fileno(self) -> int:
        return int(self._socket.getsockopt(zmq.FD))

    def close(self) -> None:
        self._context.destroy(linger=0)

    def send(self, content: Content) -> bool:
        """Queue one message; False if it was dropped because nobody takes them off."""
        try:
            self._socket.send(encode_object(content), zmq.DONTWAIT)
        except zmq.Again:
            self.dropped += 1
            return False
        return True

    def receive(self) -> Content | None:
        """The next message, or None. Raises ProtocolError for one that is no JSON object."""
        try:
            parts = self._socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None
        if len(parts) != 1:
            raise ProtocolError("a control message of several parts")
        return decode_object(parts[0])


class WorkerEnd(_End):
    """The worker's end: binds `listener`, an inherited listening unix socket.

    The number stays the caller's: zmq closes a duplicate, since the fd table is shared.
    """

    def __init__(self, listener: int) -> None:
        super().__init__()
        self._socket.setsockopt(zmq.USE_FD, os.dup(listener))
        self._socket.bind("ipc:///inherited")  # never opened: the fd is bound already
        self._early: deque[Content] = deque(maxlen=EARLY)

    def send(self, content: Content) -> bool:
        """As _End.send, but what finds no supervisor yet is kept for receive() to send."""
        self._flush()
        if self._early or not super().send(content):
            self._early.append(content)
            return False
        return True

    def receive(self) -> Content | None:
        # Whatever makes zmq look at what has happened, such as the supervisor connecting, may take
        # its event off fileno(): so nothing is left to be sent or received when that was the last.
        while (content := super().receive()) is None and self._early:
            events = int(self._socket.getsockopt(zmq.EVENTS))
            if events & zmq.POLLOUT:
                self._flush()
            elif not events & zmq.POLLIN:
                return None
        self._flush()
        return content

    def _flush(self) -> None:
        while self._early and super().send(self._early[0]):
            self._early.popleft()


@dataclass
class _Pending:
    """A command that is not answered yet; times of time.monotonic."""

    content: Content
    deadline: float
    resend_at: float


class SupervisorEnd(_End):
    """The supervisor's end: connects to `path` and keeps track of what is not answered yet."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._socket.setsockopt(zmq.RECONNECT_IVL, 5)  # milliseconds
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
        self._socket.connect(f"ipc://{path}")
        self._pending: dict[int, _Pending] = {}

    def command(self, request_id: int, content: Content, timeout: float) -> None:
        """Send a command; receive() returns its answer, expired() its id after `timeout` s."""
        now = time.monotonic()
        message = {"id": request_id, **content}
        self._pending[request_id] = _Pending(message, now + timeout, now + RESEND_SECONDS)
        self.send(message)

    def receive(self) -> Content | None:
        """The next event or answer; an answer to nothing that is pending is passed over."""
        while (content := super().receive()) is not None:
            if "id" not in content:
                return content
            request_id = content["id"]
            if type(request_id) is int and self._pending.pop(request_id, None) is not None:
                return content
        return None

    def resend(self) -> None:
        """Send again what has waited long enough."""
        now = time.monotonic()
        for pending in self._pending.values():
            if now >= pending.resend_at:
                pending.resend_at = now + RESEND_SECONDS
                self.send(pending.content)

    def expired(self) -> list[int]:
        """Give up on commands past their deadline; their ids."""
        now = time.monotonic()
        late = [key for key, pending in self._pending.items() if now >= pending.deadline]
        for key in late:
            del self._pending[key]
        return late

    def wake_at(self) -> float | None:
        """When resend() or expired() has something to do (time.monotonic), or None."""
        times = [min(p.resend_at, p.deadline) for p in self._pending.values()]
        return min(times, default=None)
