# SPDX-License-Identifier: Apache-2.0
"""The worker's end of its control channel: a zmq DEALER socket on an inherited listener.

A worker is in a mount and network namespace of its own and reaches no path, so it binds the
listening unix socket that it inherited (ZMQ_USE_FD); the supervisor connects to that socket's path.
A worker that is created again binds the same listener, and the supervisor connects again by itself.
Messages that were under way are then lost, so the supervisor repeats a command, with its id, until
the command is answered. Neither end ever blocks: a message that does not fit in the queue is
dropped and counted.

Only workers import this module. The supervisor's end does without libzmq:
supervisor/worker_link.py.
"""

import os
from collections import deque
from typing import Final

import zmq

from vfsd.transport.control_messages import MAX_MESSAGE, Content, decode_object, encode_object
from vfsd.transport.errors import ProtocolError

QUEUE: Final = 1000  # messages
EARLY: Final = 100  # messages that a worker keeps until a supervisor has connected


class WorkerEnd:
    """Binds `listener`, an inherited listening unix socket.

    The caller keeps the fd `listener`: zmq closes a duplicate, since the fd table is shared.
    `fileno()` is edge-triggered: receive until None after each event, and after each send.
    """

    def __init__(self, listener: int) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, QUEUE),
            (zmq.RCVHWM, QUEUE),
            (zmq.MAXMSGSIZE, MAX_MESSAGE),
            (zmq.USE_FD, os.dup(listener)),
        ):
            self._socket.setsockopt(option, value)
        self._socket.bind("ipc:///inherited")  # the path is never opened: the fd is bound already
        self._early: deque[Content] = deque(maxlen=EARLY)
        self.dropped = 0

    def fileno(self) -> int:
        return int(self._socket.getsockopt(zmq.FD))

    def close(self) -> None:
        self._context.destroy(linger=0)

    def send(self, content: Content) -> bool:
        """Queue one message. Return False if it cannot be queued: the message is dropped, or, if no
        supervisor is connected yet, kept for receive() to send."""
        self._flush()
        if self._early or not self._send(content):
            self._early.append(content)
            return False
        return True

    def receive(self) -> Content | None:
        """The next message, or None. Raises ProtocolError for a message that is not a JSON
        object."""
        # Everything that makes zmq look at new events, such as the supervisor connecting, may take
        # the event off fileno(). So this loop leaves nothing to send or to receive, in case that
        # was the last event.
        while (content := self._receive()) is None and self._early:
            events = int(self._socket.getsockopt(zmq.EVENTS))
            if events & zmq.POLLOUT:
                self._flush()
            elif not events & zmq.POLLIN:
                return None
        self._flush()
        return content

    def _send(self, content: Content) -> bool:
        try:
            self._socket.send(encode_object(content), zmq.DONTWAIT)
        except zmq.Again:
            self.dropped += 1
            return False
        return True

    def _receive(self) -> Content | None:
        try:
            parts = self._socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None
        if len(parts) != 1:
            raise ProtocolError("a control message has several parts; expected 1")
        return decode_object(parts[0])

    def _flush(self) -> None:
        while self._early and self._send(self._early[0]):
            self._early.popleft()
