# SPDX-License-Identifier: Apache-2.0
"""Both ends of the launcher's socket: requests with fds, and their answers.

A request has a kind and a number, which comes back in the answer; there is no other content. So an
answer for a supervisor that died has a number that its successor does not know.
"""

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from vfsd.supervisor.descendants import has_ended
from vfsd.transport.errors import OperatorError
from vfsd.transport.passed_fds import ROOM, close_fds, decode_fds, encode_fds

REQUEST: Final = struct.Struct("=BI")  # kind, number
ANSWER: Final = struct.Struct("=Ii")  # number, errno or 0
LOOK_SECONDS: Final = 0.1  # between two looks whether the launcher lives
ANSWER_SECONDS: Final = 120.0  # a launcher that has not answered after this time hangs


class LauncherGoneError(OperatorError):
    """The launcher has ended or does not answer: no more pools can be made."""


class Answer(NamedTuple):
    """An errno or 0, and fds, which the holder of the answer owns."""

    error: int
    fds: list[int]


class LauncherDiedError(OSError):
    """The launcher died with a request, which it may have carried out; its deputy goes on."""

    def __init__(self) -> None:
        super().__init__(errno.ESRCH, "the launcher died")


class Requests:
    """The end of keeper and supervisor. The fd stays the caller's. `deaths`: how many launchers
    have died."""

    def __init__(self, fd: int, deaths: Callable[[], int]) -> None:
        self._fd = fd
        self._deaths = deaths
        self._answers: dict[int, Answer | None] = {}  # by number; None: still to come
        self._sent: dict[int, int] = {}  # by number: `deaths` when the request was sent

    def send(self, kind: int, fds: Sequence[int]) -> int:
        """Send a request; returns its number. LauncherGoneError if there is no launcher."""
        number = _new_number()
        deaths = self._deaths()
        try:
            self._with_socket(ANSWER_SECONDS, lambda sock: _send(sock, kind, number, fds))
        except TimeoutError:
            raise LauncherGoneError("the launcher does not answer") from None
        except OSError as gone:
            raise _gone(gone) from None
        self._answers[number], self._sent[number] = None, deaths
        return number

    def send_only(self, kind: int, fds: Sequence[int] = ()) -> None:
        """Send a request whose answer is not waited for: an event loop must not wait. No effect if
        the launcher is gone or hangs."""
        with suppress(OSError, LauncherGoneError):
            self._receive()
            self._with_socket(0.0, lambda sock: _send(sock, kind, _new_number(), fds))

    def ask(self, kind: int, fds: Sequence[int]) -> list[int]:
        """Send a request and wait for its answer, as answer() returns it. If the launcher dies, the
        next launcher is asked."""
        while True:
            number = self.send(kind, fds)
            try:
                return self._await_answer(number)
            except LauncherDiedError:
                continue
            finally:
                self.forget(number)

    def _await_answer(self, number: int) -> list[int]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while (answer := self.answer(number)) is None:
            if time.monotonic() > deadline:
                raise LauncherGoneError("the launcher does not answer")
            has_ended(self._fd, LOOK_SECONDS)  # the fd is readable
        return answer

    def answer(self, number: int) -> list[int] | None:
        """The fds of the answer to this request, which the caller owns; None if there is no answer
        yet. OSError if the request was refused, LauncherDiedError if the launcher died with it,
        LauncherGoneError if there is no launcher."""
        deaths = self._deaths()  # first: the answer may be the last thing that the launcher did
        self._receive()
        answer = self._answers[number]
        if answer is None:
            if deaths != self._sent[number]:
                raise LauncherDiedError
            return None
        self._answers[number] = None
        if answer.error:
            raise OSError(answer.error, os.strerror(answer.error))
        return answer.fds

    def forget(self, number: int) -> None:
        """The answer to this request is not waited for any more."""
        answer = self._answers.pop(number, None)
        self._sent.pop(number, None)
        close_fds(answer.fds if answer else [])

    def _receive(self) -> None:
        """Take all answers that are there off the socket."""
        with suppress(BlockingIOError):
            while True:
                self._with_socket(0.0, self._receive_one)

    def _receive_one(self, sock: socket.socket) -> None:
        try:
            data, ancillary, _, _ = sock.recvmsg(ANSWER.size, ROOM, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError as gone:
            raise _gone(gone) from None
        fds = decode_fds(ancillary)
        if not data:
            raise _gone(ConnectionResetError(errno.ECONNRESET, "it closed its socket"))
        number, error = ANSWER.unpack(data)
        if number in self._answers:
            self._answers[number] = Answer(error, fds)
        else:
            close_fds(fds)

    def _with_socket(self, seconds: float, action: Callable[[socket.socket], None]) -> None:
        sock = socket.socket(fileno=self._fd)
        try:
            sock.settimeout(seconds)
            action(sock)
        finally:
            sock.detach()


def _new_number() -> int:
    return int.from_bytes(os.urandom(4), "little")


def _send(sock: socket.socket, kind: int, number: int, fds: Sequence[int]) -> None:
    sock.sendmsg([REQUEST.pack(kind, number)], encode_fds(fds))


def _gone(reason: OSError) -> LauncherGoneError:
    return LauncherGoneError(f"the launcher is gone: {reason.strerror}")


# In the launcher.

# Carries out a request: takes the fds of the request, and returns the fds of the answer, which are
# closed when the answer has been sent.
Action = Callable[[Sequence[int]], list[int]]


def serve(
    sock: socket.socket, actions: Mapping[int, Action], wait: Callable[[], None] = lambda: None
) -> None:
    """Answer requests until the other end is closed. `wait` may return before there is one."""
    while True:
        wait()
        try:
            data, ancillary, flags, _ = sock.recvmsg(
                REQUEST.size + 1, ROOM, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return
        fds = decode_fds(ancillary)
        if not data and not fds and _is_closed(sock):
            return
        try:
            answer, given = _obey(data, flags, fds, actions)
        finally:
            close_fds(fds)  # before the answer, which reports that the request is complete
        if answer:
            with suppress(OSError):  # the supervisor died, or does not read its answers
                sock.sendmsg([answer], encode_fds(given), socket.MSG_DONTWAIT)
        close_fds(given)


def _is_closed(sock: socket.socket) -> bool:
    """Is the other end closed? An empty packet looks the same to recvmsg(2)."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _obey(
    data: bytes, flags: int, fds: Sequence[int], actions: Mapping[int, Action]
) -> tuple[bytes, list[int]]:
    """Carry out the request in a packet; returns the answer (b"": none) and the fds of the
    answer."""
    if len(data) != REQUEST.size or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        return b"", []  # no number to answer with; our supervisor never sends such a packet
    kind, number = REQUEST.unpack(data)
    try:
        return ANSWER.pack(number, 0), actions.get(kind, _refuse)(fds)
    except OSError as failed:
        return ANSWER.pack(number, failed.errno or errno.EINVAL), []


def _refuse(_fds: Sequence[int]) -> list[int]:
    raise OSError(errno.EINVAL, "there is no such request")
