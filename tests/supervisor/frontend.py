# SPDX-License-Identifier: Apache-2.0
"""A front-end for tests: it sends the messages of a VMM in any order, and keeps its eventfds."""

import os
import socket
from pathlib import Path
from typing import Any

from tests.waiting import HANG
from vfsd.transport.message_socket import MessageSocket
from vfsd.transport.vhost_user import (
    Number,
    ProtocolFeature,
    VirtioFeature,
    decode_reply,
    encode_message,
)
from vfsd.transport.vhost_user_payloads import (
    U64,
    MemoryRegion,
    MemoryTable,
    Payload,
    Region,
    VringAddr,
    VringFd,
    VringState,
)

MEMORY = 1 << 20
UVA = 0x7F0000000000
REGION = Region(0, MEMORY, UVA, 0)
QEMU_FEATURES = (
    VirtioFeature.INDIRECT_DESC
    | VirtioFeature.EVENT_IDX
    | VirtioFeature.PROTOCOL_FEATURES
    | VirtioFeature.VERSION_1
)


class Frontend:
    """Owns a connection, guest memory (a memfd) and the eventfds that it creates."""

    def __init__(self, path: Path | str | socket.socket) -> None:
        if isinstance(path, socket.socket):
            sock = path
        else:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(str(path))
        sock.settimeout(HANG)
        self.socket = MessageSocket(sock)
        self.memory = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.memory, MEMORY)
        self._fds = [self.memory]
        self.err_fds: list[int] = []

    def close(self) -> None:
        self.socket.close()
        for fd in self._fds:
            os.close(fd)

    def eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._fds.append(fd)
        return fd

    def send(
        self, number: Number, payload: Payload | None = None, fds: tuple[int, ...] = ()
    ) -> None:
        """Send a message and wait for no reply."""
        self.socket.send(encode_message(number, payload), fds)

    def ask(
        self,
        number: Number,
        payload: Payload | None = None,
        fds: tuple[int, ...] = (),
        need_reply: bool = False,
    ) -> Any:
        """Send a message and return the payload of its reply."""
        self.socket.send(encode_message(number, payload, need_reply), fds)
        reply = self.socket.receive()
        assert reply is not None, "the connection was closed"
        for fd in reply.fds:
            self._fds.append(fd)
        self.reply_fds = reply.fds
        return decode_reply(number, reply.header, reply.payload)

    def ack(self, number: Number, payload: Payload | None = None, fds: tuple[int, ...] = ()) -> int:
        """Send a message with the flag need_reply; returns the acknowledgement, 0 for success."""
        return int(self.ask(number, payload, fds, need_reply=True).value)

    def is_closed(self) -> bool:
        """Wait for the back-end; True if it closes the connection, False if it sends a byte."""
        try:
            return self.socket.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    # Sequences of messages that QEMU sends.

    def realize(self, queues: int, unwanted: int = ProtocolFeature.CONFIG) -> None:
        self.ask(Number.GET_FEATURES)
        offered = self.ask(Number.GET_PROTOCOL_FEATURES).value
        self.send(Number.SET_PROTOCOL_FEATURES, U64(offered & ~unwanted))
        self.ask(Number.GET_QUEUE_NUM)
        self.ask(Number.GET_MAX_MEM_SLOTS)
        self.send(Number.SET_OWNER)
        self.ask(Number.GET_FEATURES)
        for index in range(queues):
            self.send(Number.SET_VRING_CALL, VringFd(index, True), (self.eventfd(),))
            self.err_fds.append(self.eventfd())
            self.send(Number.SET_VRING_ERR, VringFd(index, True), (self.err_fds[-1],))

    def driver_ok(self, queues: int) -> None:
        self.send(Number.SET_FEATURES, U64(QEMU_FEATURES))
        assert self.ack(Number.ADD_MEM_REG, MemoryRegion(REGION), (self.memory,)) == 0
        for index in range(queues):
            self.start_vring(index)
        for index in range(queues):
            assert self.ack(Number.SET_VRING_ENABLE, VringState(index, 1)) == 0
        for index in range(queues):
            self.send(Number.SET_VRING_CALL, VringFd(index, True), (self.eventfd(),))

    def start_vring(self, index: int) -> None:
        start = UVA + index * 0x10000
        self.send(Number.SET_VRING_NUM, VringState(index, 128))
        self.send(Number.SET_VRING_BASE, VringState(index, 0))
        addr = VringAddr(index, 0, start, start + 0x2000, start + 0x1000, 0)
        self.send(Number.SET_VRING_ADDR, addr)
        self.send(Number.SET_VRING_KICK, VringFd(index, True), (self.eventfd(),))

    def stop(self, queues: int) -> list[int]:
        """Stop every vring; returns their bases."""
        for index in range(queues):
            self.send(Number.SET_VRING_ENABLE, VringState(index, 0))
        bases = [
            self.ask(Number.GET_VRING_BASE, VringState(index, 0)).num for index in range(queues)
        ]
        for index in range(queues):
            self.send(Number.SET_VRING_CALL, VringFd(index, True), (self.eventfd(),))
        for _ in range(2):
            assert self.ack(Number.RESET_DEVICE) == 0
        return bases

    def set_mem_table(self) -> int:
        return self.ack(Number.SET_MEM_TABLE, MemoryTable((REGION,)), (self.memory,))
