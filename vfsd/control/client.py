# SPDX-License-Identifier: Apache-2.0
"""Asks one daemon, and changes what it does: the API for operators' programs.

A request that only reads is repeated until it is answered or its time is over, so the death of the
supervisor or of its control process does not show. A request that changes something is sent once.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, Self

import zmq

from vfsd.control.instances import Instance
from vfsd.control.model import Counters, LogRecord, Status, decode
from vfsd.transport.control_messages import decode_object
from vfsd.transport.errors import OperatorError, ProtocolError
from vfsd.transport.operator_protocol import LOG_TOPIC, REPLY_MAX, VERSION, encode_request

TIMEOUT: Final = 10.0  # seconds
REPEAT_SECONDS: Final = 2.0
_QUEUE: Final = 1000  # messages
_LOOK_MS: Final = 1000  # between two looks at whether the daemon is still there


class Client:
    """A connection to the daemon of an instance, or to the socket at a path. `timeout`: in seconds,
    for which an answer is waited for.

    Each request raises OperatorError if the daemon refuses it or does not answer, and ProtocolError
    if its answer is not as described in model.py.
    """

    def __init__(self, where: Instance | str, timeout: float = TIMEOUT) -> None:
        self._path = where if isinstance(where, str) else where.path
        self._timeout = timeout
        self._context = zmq.Context(io_threads=1)
        self._numbers = count(1)
        self._socket = self._connect(zmq.DEALER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def status(self) -> Status:
        """What the daemon is doing."""
        return decode(Status, self._ask("status"))

    def counters(self) -> Counters:
        """What its workers have counted."""
        return decode(Counters, self._ask("counters"))

    def recent_log(self) -> list[LogRecord]:
        """The lines that its supervisor has logged last; at most 100, the oldest first."""
        lines = self._ask("recent-log")
        if not isinstance(lines, list):
            raise ProtocolError("the answer is not a list of lines")
        return [decode(LogRecord, line) for line in lines]

    def follow_log(self) -> Iterator[LogRecord]:
        """The lines that are logged from now on, until the daemon has ended. Lines are lost if they
        are not taken in time, and while the supervisor is replaced."""
        socket = self._connect(zmq.SUB)
        try:
            socket.setsockopt(zmq.SUBSCRIBE, LOG_TOPIC)
            while socket.poll(_LOOK_MS) or Path(self._path).is_socket():
                with suppress(zmq.Again):
                    _, _, content = socket.recv(zmq.DONTWAIT).partition(b" ")
                    yield decode(LogRecord, decode_object(content))
        finally:
            socket.close()

    def set_log_level(self, level: str) -> None:
        """Log from this level up, in all processes; the level outlives their deaths."""
        self._order("set-log-level", level=level)

    def restart_worker(self, slot: int) -> None:
        """Have the worker of a slot killed and created again. Its guest gets no error."""
        self._order("restart-worker", slot=slot)

    def stop(self) -> None:
        """Have the daemon end its share, as SIGTERM does. It has not ended when this returns."""
        self._order("stop")

    def _connect(self, kind: int) -> "zmq.Socket[bytes]":
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RCVHWM, _QUEUE),
            (zmq.MAXMSGSIZE, REPLY_MAX),
            (zmq.RECONNECT_IVL, 50),  # milliseconds
        ):
            socket.setsockopt(option, value)
        socket.connect(f"ipc://{self._path}")
        return socket

    def _ask(self, request: str) -> Any:
        """The result of a request that only reads."""
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            number = self._send(request, {})
            reply = self._reply(number, min(left, REPEAT_SECONDS)) if number else None
            if reply is not None:
                return reply.get("result")
            # zmq does not connect again by itself after an error in what the other end has sent.
            self._socket.close()
            self._socket = self._connect(zmq.DEALER)
        raise self._no_answer()

    def _order(self, request: str, **arguments: Any) -> None:
        """Send a request that changes something, once."""
        number = self._send(request, arguments)
        if not number or self._reply(number, self._timeout) is None:
            raise self._no_answer()

    def _send(self, request: str, arguments: dict[str, Any]) -> int:
        """Send a request; returns its id, 0 if zmq has given the connection up."""
        number = next(self._numbers)
        try:
            self._socket.send(encode_request(number, request, arguments), zmq.DONTWAIT)
        except zmq.Again:
            return 0
        return number

    def _reply(self, number: int, seconds: float) -> dict[str, Any] | None:
        """The reply to a request; None if there is none in this time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._socket.poll(int(left * 1000) + 1):
                break
            reply = decode_object(self._socket.recv())
            if reply.get("version") != VERSION:
                raise ProtocolError(f"the daemon does not speak version {VERSION}")
            if reply.get("id") == number:
                if "error" in reply:
                    raise OperatorError(str(reply["error"]))
                return reply
        return None

    def _no_answer(self) -> OperatorError:
        return OperatorError(f"{self._path} has not answered for {self._timeout:g} s")
