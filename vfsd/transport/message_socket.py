# SPDX-License-Identifier: Apache-2.0
"""vhost-user messages over a unix stream socket: one message and its fds at a time.

Trust: the peer may send any bytes, stop in the middle, or attach fds to any message. The size is
checked before the payload is read, at most MAX_FDS fds are taken, and each received fd is either
returned with its message or closed. The class works on blocking and on non-blocking sockets: on a
non-blocking socket, BlockingIOError means "not complete yet", and the bytes and fds received up to
then are kept.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vfsd.transport.errors import ProtocolError, TruncatedError
from vfsd.transport.passed_fds import close_fds, decode_fds, encode_fds
from vfsd.transport.vhost_user import HEADER, MAX_FDS, Header, decode_header, expects_fds

_ANCILLARY: Final = socket.CMSG_SPACE(MAX_FDS * 4)


@dataclass(frozen=True)
class RawMessage:
    """A framed message, not decoded yet. Its holder owns `fds`."""

    header: Header
    payload: bytes
    fds: tuple[int, ...]


class MessageSocket:
    """One end of a vhost-user connection. Owns the socket and the fds of a half-received
    message."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._received = bytearray()
        self._fds: list[int] = []
        self._peeked = 0  # bytes of the message that peek() returned

    @classmethod
    def not_blocking(cls, sock: socket.socket) -> "MessageSocket":
        sock.setblocking(False)
        return cls(sock)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self._drop()
        self.socket.close()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send one encoded message; the caller keeps `fds`.

        Raises BlockingIOError if the peer does not read (none of our messages fills a socket
        buffer).
        """
        sent = self.socket.sendmsg([data], encode_fds(fds), socket.MSG_NOSIGNAL)
        while sent < len(data):
            sent += self.socket.send(data[sent:], socket.MSG_NOSIGNAL)

    def receive(self) -> RawMessage | None:
        """Take the next message off the socket; None if the peer closed the socket between two
        messages."""
        try:
            if not self._fill(HEADER.size):
                return None
            header = decode_header(bytes(self._received[: HEADER.size]))
            self._fill(HEADER.size + header.size)
        except ProtocolError:
            self._drop()
            raise
        message = RawMessage(header, bytes(self._received[HEADER.size :]), tuple(self._fds))
        self._received.clear()
        self._fds.clear()
        return message

    def peek(self) -> RawMessage | None:
        """As receive(), but the message stays on the socket until consume().

        A successor that shares the fd table receives the message again if this process dies before
        consume(). The fds are duplicates of the fds that stay queued. A message that has not
        arrived in one piece is received instead.
        """
        if self._received:
            return self.receive()
        start = self.socket.recv(HEADER.size, socket.MSG_PEEK)
        if not start:
            return None
        if len(start) == HEADER.size:
            header = decode_header(start)
            size = HEADER.size + header.size
            # One byte more than the message: when MSG_PEEK reads a message without fds, Linux goes
            # on to the next message and returns its fds. After a message with fds Linux stops.
            data, fds = self._receive_with_fds(size + 1, socket.MSG_PEEK)
            payload = data[HEADER.size : size]
            complete = len(data) >= size
            if len(data) != size or not expects_fds(header, payload):
                close_fds(fds)
                fds = []
            if complete:
                self._peeked = size
                return RawMessage(header, payload, tuple(fds))
        return self.receive()

    def consume(self) -> None:
        """Take the message that peek() returned off the socket. The queued originals of its fds are
        dropped."""
        while self._peeked:
            taken = len(self.socket.recv(self._peeked))
            if not taken:
                raise ProtocolError("a message that peek() returned is not on the socket any more")
            self._peeked -= taken

    def _fill(self, size: int) -> bool:
        """Receive until `size` bytes are there; False if the peer closed before the first byte."""
        while len(self._received) < size:
            data, fds = self._receive_with_fds(size - len(self._received), 0)
            self._fds += fds
            if len(self._fds) > MAX_FDS:
                raise ProtocolError(f"a message has more than {MAX_FDS} fds")
            if not data:
                if not self._received:
                    return False
                raise TruncatedError("the peer closed the socket in the middle of a message")
            self._received += data
        return True

    def _receive_with_fds(self, size: int, flags: int) -> tuple[bytes, list[int]]:
        flags |= socket.MSG_CMSG_CLOEXEC
        data, ancillary, result, _ = self.socket.recvmsg(size, _ANCILLARY, flags)
        fds = decode_fds(ancillary)
        if result & socket.MSG_CTRUNC:
            close_fds(fds)
            if len(fds) >= MAX_FDS:
                raise ProtocolError(f"a message has more than {MAX_FDS} fds")
            fds = []  # this process can open no more fds: the message has come without them
        return data, fds

    def _drop(self) -> None:
        close_fds(self._fds)
        self._fds.clear()
        self._received.clear()
