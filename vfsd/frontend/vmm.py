# SPDX-License-Identifier: Apache-2.0
"""The VMM's half of a vhost-user session in miniature: connect, negotiate, start and stop vrings.

Trust: the back-end may be any program. Everything that it says is checked here. Everything that it
does wrong is reported to the operator in one line. A back-end that does not answer is waited for
(slow_wait.py). This module does not touch requests.
"""

import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

from vfsd.frontend.guest_memory import UVA, GuestMemory, round_to_pages
from vfsd.frontend.slow_wait import SlowWait
from vfsd.transport.errors import OperatorError, ProtocolError
from vfsd.transport.message_socket import MessageSocket
from vfsd.transport.native import lib
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.socket_path import addressed
from vfsd.transport.vhost_user import (
    MESSAGES,
    Number,
    ProtocolFeature,
    VirtioFeature,
    decode_reply,
    encode_message,
)
from vfsd.transport.vhost_user_payloads import (
    U64,
    MemoryTable,
    Payload,
    VringAddr,
    VringFd,
    VringState,
)

STEP_SECONDS: Final = 0.05  # between two attempts to connect
NEEDED: Final = VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES
WANTED: Final = NEEDED | VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC
PROTOCOL_WANTED: Final = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
QUEUES_WITHOUT_MQ: Final = 2  # the hiprio queue and one request queue, which every device has
_EVENTFD: Final = os.EFD_NONBLOCK | os.EFD_CLOEXEC
T = TypeVar("T")


@dataclass(frozen=True)
class DriverVring:
    """One virtqueue: its offsets in guest memory, and its eventfds."""

    index: int
    size: int
    desc: int
    avail: int
    used: int
    kick_fd: int
    call_fd: int

    @staticmethod
    def bytes(size: int) -> int:
        """The bytes of guest memory that create() allocates."""
        return sum(round_to_pages(part) for part in _areas(size))

    @classmethod
    def create(cls, index: int, size: int, memory: GuestMemory) -> Self:
        desc, avail, used = (memory.allocate(part) for part in _areas(size))
        kick_fd = os.eventfd(0, _EVENTFD)
        return cls(index, size, desc, avail, used, kick_fd, os.eventfd(0, _EVENTFD))

    def close(self) -> None:
        close_fds((self.kick_fd, self.call_fd))

    def addr(self) -> VringAddr:
        return VringAddr(self.index, 0, UVA + self.desc, UVA + self.used, UVA + self.avail, 0)

    def fill(self, config: Any, memory: GuestMemory, event_idx: bool) -> None:
        """Fill in `config`, a struct driver_ring_config, for C."""
        memory.fill(config.memory)
        config.size, config.event_idx, config.kick_fd = self.size, event_idx, self.kick_fd
        config.desc, config.avail, config.used = self.desc, self.avail, self.used


def _areas(size: int) -> tuple[int, int, int]:
    """The bytes of descriptor table, avail ring and used ring."""
    areas: Any = lib.split_ring_areas(size, True)
    return areas.desc, areas.avail, areas.used


class Vmm:
    """One session with a back-end. Owns the connection until close()."""

    def __init__(self, path: str, sock: socket.socket) -> None:
        self._path = path
        sock.setblocking(False)
        self._socket = MessageSocket(sock)
        self._started: list[int] = []  # vring indexes
        self._acks = False
        self.features = VirtioFeature(0)
        self.queues_offered = QUEUES_WITHOUT_MQ  # including the hiprio queue
        self.is_ending = False  # a signal has come: waits are brief

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable when the back-end has closed the connection: it never sends without being
        asked."""
        return self._socket.fileno()

    def is_there(self) -> bool:
        """False once the back-end has closed the connection."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self._socket.close()

    @property
    def event_idx(self) -> bool:
        return VirtioFeature.EVENT_IDX in self.features

    @property
    def indirect(self) -> bool:
        return VirtioFeature.INDIRECT_DESC in self.features

    def negotiate(self) -> None:
        """Agree on features and ask for the number of queues."""
        offered = VirtioFeature(self._ask(Number.GET_FEATURES).value & WANTED)
        if offered & NEEDED != NEEDED:
            raise self._error("offers no virtio 1 device over vhost-user; is it for virtio-fs?")
        self.features = offered
        protocol = ProtocolFeature(self._ask(Number.GET_PROTOCOL_FEATURES).value & PROTOCOL_WANTED)
        self._command(Number.SET_PROTOCOL_FEATURES, U64(protocol))
        self._acks = ProtocolFeature.REPLY_ACK in protocol
        if ProtocolFeature.MQ in protocol:
            self.queues_offered = self._ask(Number.GET_QUEUE_NUM).value
        self._command(Number.SET_OWNER)
        self._command(Number.SET_FEATURES, U64(offered))

    def check_queues(self, request_queues: int) -> None:
        """Raise OperatorError for more request queues than the back-end offers."""
        offered = self.queues_offered - 1
        if request_queues > offered:
            raise OperatorError(
                f"--queues: '{self._path}' offers {offered} request queue(s), not"
                f" {request_queues}; ask for fewer, or start the back-end with more"
            )

    def start(self, memory: GuestMemory, vrings: list[DriverVring]) -> None:
        """Hand over the memory and start every vring."""
        self._command(Number.SET_MEM_TABLE, MemoryTable((memory.region(),)), (memory.fd,))
        for vring in vrings:
            self._started.append(vring.index)
            self._start_vring(vring)
        for vring in vrings:
            self._command(Number.SET_VRING_ENABLE, VringState(vring.index, 1))

    def _start_vring(self, vring: DriverVring) -> None:
        index = vring.index
        self._command(Number.SET_VRING_NUM, VringState(index, vring.size))
        self._command(Number.SET_VRING_BASE, VringState(index, 0))
        self._command(Number.SET_VRING_ADDR, vring.addr())
        self._command(Number.SET_VRING_CALL, VringFd(index, True), (vring.call_fd,))
        self._command(Number.SET_VRING_KICK, VringFd(index, True), (vring.kick_fd,))

    def stop(self) -> None:
        """Stop every vring; afterwards the back-end does not touch guest memory."""
        started, self._started = self._started, []
        for index in started:
            self._command(Number.SET_VRING_ENABLE, VringState(index, 0))
        for index in started:
            self._ask(Number.GET_VRING_BASE, VringState(index, 0))

    def _command(
        self, number: Number, payload: Payload | None = None, fds: tuple[int, ...] = ()
    ) -> None:
        """Send a message, and have it acknowledged if the back-end can."""
        if self._acks:
            result = self._ask(number, payload, fds).value
            if result != 0:
                raise self._error(f"refuses {number.name} ({result})")
        else:
            self._send(number, payload, fds)

    def _ask(
        self, number: Number, payload: Payload | None = None, fds: tuple[int, ...] = ()
    ) -> Any:
        """Send a message and return the payload of its reply."""
        self._send(number, payload, fds)
        try:
            reply = self._wait(self._socket.receive, number, select.POLLIN)
            if reply is None:
                raise self._error(f"closed the connection at {number.name}; see its log")
            close_fds(reply.fds)
            return decode_reply(number, reply.header, reply.payload)
        except ProtocolError as error:
            raise self._error(f"breaks the vhost-user protocol: {error}") from None

    def _send(self, number: Number, payload: Payload | None, fds: tuple[int, ...]) -> None:
        wants_ack = self._acks and MESSAGES[number].reply is None
        data = encode_message(number, payload, wants_ack)
        self._wait(lambda: self._socket.send(data, fds), number, select.POLLOUT)

    def _wait(self, action: Callable[[], T], number: Number, events: int) -> T:
        """Repeat an action on the socket until it does not block. A message is smaller than what
        the kernel queues at once, so a message that would block has not been sent in part."""
        wait = SlowWait(
            f"the back-end at '{self._path}' has not answered {number.name};"
            " another VMM may use it",
            self.is_ending,
        )
        poll = select.poll()
        poll.register(self._socket, events)
        while True:
            try:
                return action()
            except BlockingIOError:
                poll.poll(wait.rest_ms())
            except OSError as error:
                raise self._error(f"is lost at {number.name}: {error.strerror}") from None

    def _error(self, what: str) -> OperatorError:
        return OperatorError(f"the back-end at '{self._path}' {what}")


def connect(path: str) -> Vmm:
    """Connect to a back-end's socket, which must exist. While its queue of connections is full,
    wait."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    try:
        _connect(sock, path)
    except (OSError, ValueError) as error:
        sock.close()
        raise OperatorError(_connect_text(path, error)) from error
    except BaseException:
        sock.close()
        raise
    return Vmm(path, sock)


def _connect(sock: socket.socket, path: str) -> None:
    wait = SlowWait(f"'{path}' accepts no connection; another VMM may use it")
    while True:
        try:
            with addressed(path) as address:
                return sock.connect(address)
        except BlockingIOError:
            time.sleep(wait.rest(STEP_SECONDS))


def _connect_text(path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"'{path}' does not exist; start virtiofsd first, or give --source DIR"
    if isinstance(error, ConnectionRefusedError):
        return f"no process listens on '{path}'; start virtiofsd on it, or give --source DIR"
    return f"cannot connect to '{path}': {getattr(error, 'strerror', None) or error}"
