# SPDX-License-Identifier: Apache-2.0
"""A vhost-user back-end that runs in a thread and answers rightly or wrongly, as a test wants.

It serves the rings in Python, and answers FUSE_INIT and the requests that `answers` has an entry
for.
"""

import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.waiting import HANG
from vfsd.frontend.guest_memory import UVA
from vfsd.frontend.vmm import DriverVring
from vfsd.transport.message_socket import MessageSocket
from vfsd.transport.vhost_user import (
    Message,
    Number,
    ProtocolFeature,
    VirtioFeature,
    decode_message,
    encode_reply,
)
from vfsd.transport.vhost_user_payloads import U64, MemoryTable, Payload, VringAddr, VringState

from .device import Descriptor, Device

FEATURES = VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.EVENT_IDX
PROTOCOL = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
INIT = 26
INIT_OUT = struct.pack("<IIIIHHIIHHII24x", 7, 38, 0, 0, 12, 9, 1 << 20, 1, 0, 0, 0, 0)


@dataclass(frozen=True)
class Request:
    """A FUSE request that the device has taken off a ring."""

    head: int
    chain: list[Descriptor]
    opcode: int
    unique: int
    nodeid: int
    body: bytes

    @property
    def room(self) -> int:
        return sum(d.size for d in self.chain if d.writable)


# Writes a reply and returns its used length; returns None if the request is to get no reply at all.
Answer = Callable[["Backend", Device, Request], int | None]


def reply(device: Device, request: Request, body: bytes = b"", **wrong: int) -> int:
    """Write a reply; `wrong` replaces members of its header. Returns the true length."""
    size = OUT_HEADER.size + len(body)
    header = (wrong.get("len", size), wrong.get("error", 0), wrong.get("unique", request.unique))
    data = OUT_HEADER.pack(*header) + body
    for piece in (d for d in request.chain if d.writable):
        device.write(piece.gpa, data[: piece.size])
        data = data[piece.size :]
    return size


class Backend:
    """Listens on a socket and serves one front-end. `values` replaces the values of replies to
    vhost-user messages."""

    def __init__(self, path: Path, answers: dict[int, Answer], values: dict[Number, int]) -> None:
        self.path = str(path)
        self.requests: list[Request] = []
        self.messages: list[Number] = []
        self._answers = {INIT: answer_init} | answers
        self._values = {
            Number.GET_FEATURES: int(FEATURES),
            Number.GET_PROTOCOL_FEATURES: int(PROTOCOL),
            Number.GET_QUEUE_NUM: 2,
        } | values
        self._vrings: dict[int, dict[str, Any]] = {}
        self._devices: dict[int, Device] = {}
        self._fds: list[int] = []
        self._memory: mmap.mmap | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._listener.settimeout(HANG)
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._listener.close()
        for fd in (*self._fds, self._stop):
            os.close(fd)
        if self._memory:
            self._memory.close()

    def _serve(self) -> None:
        fds = [self._listener.fileno(), self._stop]
        if self._stop in select.select(fds, [], [], HANG)[0]:
            return
        sock, _ = self._listener.accept()
        sock.settimeout(HANG)
        messages = MessageSocket(sock)
        try:
            while self._step(messages):
                pass
        finally:
            messages.close()

    def _step(self, messages: MessageSocket) -> bool:
        kicks = {device.vring.kick_fd: device for device in self._devices.values()}
        ready, _, _ = select.select([messages.fileno(), self._stop, *kicks], [], [], HANG)
        if self._stop in ready:
            return False
        for fd in kicks.keys() & set(ready):
            os.eventfd_read(fd)
            self._serve_ring(kicks[fd])
        return messages.fileno() not in ready or self._serve_message(messages)

    def _serve_message(self, messages: MessageSocket) -> bool:
        raw = messages.receive()
        if raw is None:
            return False
        message = decode_message(raw.header, raw.payload, raw.fds)
        self._fds += message.fds
        number = message.kind.number
        self.messages.append(number)
        answer = self._handle(message)
        if message.kind.reply or message.need_reply:
            messages.socket.sendall(encode_reply(number, answer))
        return True

    def _handle(self, message: Message) -> Payload:
        number, payload = message.kind.number, message.payload
        if isinstance(payload, MemoryTable):
            size = os.fstat(message.fds[0]).st_size
            self._memory = mmap.mmap(message.fds[0], size)
        elif number is Number.GET_VRING_BASE:
            assert isinstance(payload, VringState)
            device = self._devices.pop(payload.index)
            return VringState(payload.index, device.last_avail)
        elif payload is not None and hasattr(payload, "index"):
            self._configure(number, payload, message.fds)
        return U64(self._values.get(number, 0))

    def _configure(self, number: Number, payload: Any, fds: tuple[int, ...]) -> None:
        state = self._vrings.setdefault(payload.index, {"index": payload.index})
        if number is Number.SET_VRING_NUM:
            state["size"] = payload.num
        elif number is Number.SET_VRING_KICK:
            state["kick_fd"] = fds[0]
        elif number is Number.SET_VRING_CALL:
            state["call_fd"] = fds[0]
        elif isinstance(payload, VringAddr):
            for name in ("desc", "avail", "used"):
                state[name] = getattr(payload, name) - UVA
        elif number is Number.SET_VRING_ENABLE and payload.num:
            self._devices[payload.index] = Device(self._memory, DriverVring(**state))

    def _serve_ring(self, device: Device) -> None:
        device.set_avail_event(device.avail_idx)
        while device.avail_idx != device.last_avail:
            head, chain = device.take()
            data = b"".join(device.read(d.gpa, d.size) for d in chain if not d.writable)
            _, opcode, unique, nodeid, *_ = IN_HEADER.unpack(data[: IN_HEADER.size])
            request = Request(head, chain, opcode, unique, nodeid, data[IN_HEADER.size :])
            self.requests.append(request)
            if device.vring.index == 0:
                device.use(head, 0)
                continue
            used = self._answers.get(opcode, answer_enosys)(self, device, request)
            if used is not None:
                device.use(head, used)
                os.eventfd_write(device.vring.call_fd, 1)
            device.set_avail_event(device.avail_idx)


def answer_init(_backend: Backend, device: Device, request: Request) -> int:
    return reply(device, request, INIT_OUT)


def answer_enosys(_backend: Backend, device: Device, request: Request) -> int:
    return reply(device, request, error=-38)
