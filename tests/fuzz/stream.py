# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: the bytes and fds on the vhost-user socket, however a peer cuts them.

Input: steps: the peer sends some bytes, with or without fds, or closes; we receive, or peek and
consume. Many messages are whole, since a stream that has lost its place is refused at once.

What must hold: the bytes that come out are the bytes that went in, or there is a ProtocolError and
after it nothing comes out; every fd that came is handed out once or closed.
"""

import contextlib
import os
import socket
from pathlib import Path
from typing import Final

from tests.fuzz.reader import Reader
from vfsd.transport.errors import ProtocolError
from vfsd.transport.message_socket import MessageSocket, RawMessage
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.vhost_user import HEADER, MESSAGES

NUMBERS: Final = sorted(MESSAGES)
FDS_MAX: Final = 10


def _open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _message(reader: Reader) -> bytes:
    """A whole message, or a message that announces more bytes than it has, or any bytes."""
    kind = reader.number()
    if kind >= 250:
        return reader.bytes(reader.number())
    payload = reader.bytes(kind % 45)
    size = len(payload) if kind < 200 else reader.number(2)
    return HEADER.pack(reader.choice(NUMBERS), 1, size) + payload


class Peers:
    """Both ends; `sent` holds the bytes that the peer has written and we have not received yet."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.ours = MessageSocket(ours)
        self.sent = b""
        self.memory = os.memfd_create("fuzz")

    def close(self) -> None:
        self.ours.close()
        self.peer.close()
        os.close(self.memory)

    def send(self, data: bytes, fds: int) -> None:
        """Send bytes; those that do not fit into the socket are dropped."""
        if data:
            with contextlib.suppress(BlockingIOError):
                self.sent += data[: socket.send_fds(self.peer, [data], [self.memory] * fds)]

    def check(self, message: RawMessage) -> None:
        whole = HEADER.pack(
            *(getattr(message.header, name) for name in ("number", "flags", "size"))
        )
        whole += message.payload
        assert self.sent.startswith(whole), "a message that was not sent"
        close_fds(message.fds)

    def receive(self, peek: bool) -> None:
        try:
            message = self.ours.peek() if peek else self.ours.receive()
        except BlockingIOError:
            return
        if message is None:
            return
        self.check(message)
        self.sent = self.sent[HEADER.size + len(message.payload) :]
        self.ours.consume()


def _send(reader: Reader, peers: Peers) -> None:
    """Send one message in one piece or two, each piece with fds of its own."""
    whole = _message(reader)
    cut = reader.number() % (len(whole) + 1)
    peers.send(whole[:cut], reader.number() % FDS_MAX)
    if reader.number() % 4:
        peers.receive(peek=bool(reader.number() & 1))
    peers.send(whole[cut:], reader.number() % FDS_MAX)


def _step(reader: Reader, peers: Peers) -> None:
    match reader.number() % 5:
        case 0 | 1:
            peers.send(_message(reader), reader.number() % FDS_MAX)
        case 2:
            _send(reader, peers)
        case 3:
            peers.receive(peek=True)
        case _:
            peers.receive(peek=False)


def run(data: bytes) -> None:
    """Run one connection."""
    before = _open_fds()
    reader, peers = Reader(data), Peers()
    try:
        while reader:
            _step(reader, peers)
        peers.peer.shutdown(socket.SHUT_WR)
        peers.receive(peek=False)
    except ProtocolError:
        pass
    finally:
        peers.close()
    assert _open_fds() == before, "an fd is leaked"
