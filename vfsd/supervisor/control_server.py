# SPDX-License-Identifier: Apache-2.0
"""Answers operators: the loop of the control process (control_plane.py has the theory).

Memory. At most CONNECTIONS clients are connected; for the next client the connection is closed that
has been silent for longest. A connection has one incomplete request (zmtp.py), and replies of at
most OUTGOING_BYTES: a request is read only when the reply before it has been sent, and a client
that follows the log and does not read loses lines. A client that takes no bytes of its reply for
STALL_SECONDS is cut off.

Time. Connections and requests together are limited by RATE, so that clients without end take little
of a CPU. A client with an unexpected byte is cut off.
"""

import select
import socket
import time
from contextlib import suppress
from typing import Any, Final

from vfsd.supervisor.control_report import counters, status
from vfsd.supervisor.control_socket import ControlSocket
from vfsd.transport import zmtp
from vfsd.transport.errors import OperatorError, ProtocolError
from vfsd.transport.fd_channel import FdChannel, Packet
from vfsd.transport.operator_protocol import (
    LOG_TOPIC,
    REPLY_MAX,
    decode_request,
    encode_published,
    encode_reply,
)
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.rate_limit import Bucket, Rate

CONNECTIONS: Final = 32
OUTGOING_BYTES: Final = REPLY_MAX + 4096
READ_BYTES: Final = 16384
LINGER_SECONDS: Final = 5.0  # without a connection, after which this process ends
STALL_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 5.0  # for which the supervisor's answer is waited for
RATE: Final = Rate(burst=100, per_second=100)
TICK_SECONDS: Final = 1.0

_FOR_TYPE: Final = {b"DEALER": b"ROUTER", b"SUB": b"PUB"}
_SUBSCRIBE, _CANCEL = 1, 0  # the first byte of a message from a SUB socket


class HungUpError(Exception):
    """The supervisor has closed the channel."""


class Caller:
    """One connection. `topics`: what a SUB socket has subscribed to."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.peer = zmtp.ZmtpPeer(_FOR_TYPE)
        self.outgoing = bytearray(zmtp.greeting(0))
        self.topics: set[bytes] = set()
        self.active = time.monotonic()  # when a byte was received or sent last
        self.is_greeted = False
        self.flush()

    def flush(self) -> None:
        """Send as much as the client takes; OSError if the connection is lost."""
        with suppress(BlockingIOError):
            while self.outgoing:
                del self.outgoing[: self.socket.send(self.outgoing)]
                self.active = time.monotonic()

    def put(self, message: bytes) -> bool:
        """Send a message, or keep it until the client takes it; False if there is no room."""
        frame = zmtp.encode_message(message, REPLY_MAX)
        if len(self.outgoing) + len(frame) > OUTGOING_BYTES:
            return False
        self.outgoing += frame
        self.flush()
        return True

    def next_message(self) -> bytes | None:
        """The next message if there is one, and the client has taken what came before it."""
        if self.outgoing:
            return None
        message = self.peer.next_message()
        if self.peer.is_ready and not self.is_greeted:
            self.is_greeted = True
            self.outgoing += zmtp.ready(_FOR_TYPE[self.peer.socket_type])
            self.flush()
        return message

    def receive(self) -> bool:
        """Read once; False if there is nothing to read now. ConnectionError at the end."""
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionError
        self.active = time.monotonic()
        self.peer.feed(data)
        return True

    def wants(self, topic: bytes) -> bool:
        return any(topic.startswith(prefix) for prefix in self.topics)


class ControlServer:
    """Serves the clients of `listening` until there are none. `channel`: to the supervisor."""

    def __init__(self, listening: ControlSocket, channel: FdChannel) -> None:
        self._listening = listening
        self._channel = channel
        self._clients: dict[int, Caller] = {}  # by fd
        self._bucket = Bucket(RATE)
        self._number = 0  # of the last order
        self._is_following = False

    def run(self) -> None:
        idle_since = time.monotonic()
        while self._clients or time.monotonic() - idle_since < LINGER_SECONDS:
            ready = self._wait()
            if self._channel.fileno() in ready:
                self._pushed(self._receive())
            if self._listening.socket.fileno() in ready:
                self._accept()
            for fd in [fd for fd in ready if fd in self._clients]:
                self._serve(fd)
            self._cut_off_stalled()
            self._follow()
            if self._clients:
                idle_since = time.monotonic()

    def _wait(self) -> list[int]:
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._listening.socket.fileno(), select.POLLIN)
        for fd, client in self._clients.items():
            poll.register(fd, select.POLLOUT if client.outgoing else select.POLLIN)
        return [fd for fd, _ in poll.poll(TICK_SECONDS * 1000)]

    def _pay(self) -> None:
        """Wait until RATE allows another connection or request."""
        while not self._bucket.take(1, time.monotonic()):
            time.sleep(self._bucket.seconds_until(1, time.monotonic()))

    def _accept(self) -> None:
        self._pay()
        if (sock := self._listening.accept()) is None:
            return
        if len(self._clients) >= CONNECTIONS:
            self._close(min(self._clients, key=lambda fd: self._clients[fd].active))
        with suppress(OSError):
            self._clients[sock.fileno()] = Caller(sock)

    def _close(self, fd: int) -> None:
        self._clients.pop(fd).socket.close()

    def _cut_off_stalled(self) -> None:
        late = time.monotonic() - STALL_SECONDS
        for fd, client in list(self._clients.items()):
            waits = client.outgoing or not client.is_greeted
            if waits and client.active < late:
                self._close(fd)

    def _serve(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            client.flush()
            while not client.outgoing:
                message = client.next_message()
                if message is not None:
                    self._pay()
                    self._take(client, message)
                elif client.outgoing or not client.receive():
                    break
        except (OSError, ProtocolError):
            self._close(fd)

    def _take(self, client: Caller, message: bytes) -> None:
        if client.peer.socket_type == b"SUB":
            self._subscribe(client, message)
            return
        number, request, arguments = decode_request(message)
        try:
            reply = encode_reply(number, result=self._answer(request, arguments))
        except OperatorError as error:
            reply = encode_reply(number, error=str(error))
        client.put(reply)

    def _subscribe(self, client: Caller, message: bytes) -> None:
        kind, topic = message[:1], message[1:]
        if kind == bytes([_SUBSCRIBE]) and len(client.topics) < 8:
            client.topics.add(topic[:64])
        elif kind == bytes([_CANCEL]):
            client.topics.discard(topic[:64])
        else:
            raise ProtocolError("a SUB socket has sent what is not a subscription")

    def _follow(self) -> None:
        """Have the supervisor pass its log on while a client wants it."""
        wanted = any(client.wants(LOG_TOPIC) for client in self._clients.values())
        if wanted != self._is_following:
            self._is_following = wanted
            with suppress(OperatorError):  # the supervisor is slow, and will read the order later
                self._order("follow", on=wanted)

    def _answer(self, request: str, arguments: dict[str, Any]) -> Any:
        if request not in ("status", "counters"):
            return self._order(request, **arguments)[0]
        facts, fds = self._order("describe")
        try:
            return (status if request == "status" else counters)(facts, fds)
        finally:
            close_fds(fds)

    # The supervisor.

    def _order(self, order: str, **arguments: Any) -> tuple[Any, tuple[int, ...]]:
        """Have the supervisor carry out an order; returns its result, and fds that the caller owns.
        OperatorError if it refuses, or does not answer in time."""
        self._number += 1
        self._channel.send({"id": self._number, "order": order, **arguments})
        deadline = time.monotonic() + ANSWER_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self._channel.fileno(), select.POLLIN)
            if not poll.poll(left * 1000):
                break
            packet = self._receive()
            if packet.content.get("id") != self._number:
                self._pushed(packet)
            elif "error" in packet.content:
                raise OperatorError(packet.content["error"])
            else:
                return packet.content["result"], packet.fds
        raise OperatorError(f"the supervisor has not answered for {ANSWER_SECONDS:.0f} s")

    def _receive(self) -> Packet:
        packet = self._channel.receive()
        if packet is None:
            raise HungUpError
        return packet

    def _pushed(self, packet: Packet) -> None:
        """Publish a log line. Anything else is the answer to an order that came too late."""
        close_fds(packet.fds)
        if "line" not in packet.content:
            return
        message = encode_published(LOG_TOPIC, packet.content["line"])
        for fd, client in list(self._clients.items()):
            if client.is_greeted and client.wants(LOG_TOPIC):
                try:
                    client.put(message)
                except OSError:
                    self._close(fd)
