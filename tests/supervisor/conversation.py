# SPDX-License-Identifier: Apache-2.0
"""The front-end's side of a session without a socket: messages go in, effects come out."""

from vfsd.supervisor.effects import Apply, Close, Effect, Reply, ReplyBase
from vfsd.supervisor.session import FEATURES, Session
from vfsd.transport.vhost_user import MESSAGES, Header, Message, Number, decode_reply
from vfsd.transport.vhost_user_payloads import (
    U64,
    MemoryRegion,
    Payload,
    Region,
    VringAddr,
    VringFd,
    VringState,
)

LOW = Region(0, 0xA0000, 0x7F0000000000, 0)
HIGH = Region(0xC0000, 0x100000, 0x7F00000C0000, 0xC0000)
N = Number


class Conversation:
    """A session and the fds of its messages. The fds are made-up numbers, not open files."""

    def __init__(self, queues: int = 3, tag: str | None = None) -> None:
        self.session = Session(queues, tag)
        self.next_fd = 100
        self.open: set[int] = set()
        self.effects: list[Effect] = []

    def fds(self, count: int) -> tuple[int, ...]:
        self.next_fd += count
        return tuple(range(self.next_fd - count, self.next_fd))

    def say(
        self, number: Number, payload: Payload | None = None, fds: int = 0, need_reply: bool = False
    ) -> list[Effect]:
        message = Message(MESSAGES[number], payload, self.fds(fds), need_reply)
        self.effects = self.session.handle(message)
        self.open |= set(message.fds)
        for effect in self.effects:
            if isinstance(effect, Close):
                assert set(effect.fds) <= self.open, "closes what it does not own"
                self.open -= set(effect.fds)
        return self.effects

    def ask(self, number: Number, payload: Payload | None = None) -> Payload:
        """Send a message; returns the payload of its reply."""
        (data,) = [e.data for e in self.say(number, payload) if isinstance(e, Reply)]
        return decode_reply(number, Header(*memoryview(data[:12]).cast("I")), data[12:])

    def ack(self, number: Number, payload: Payload | None = None, fds: int = 0) -> int:
        replies = [e for e in self.say(number, payload, fds, True) if isinstance(e, Reply)]
        assert len(replies) == 1
        return int.from_bytes(replies[0].data[12:], "little")

    def applies(self) -> bool:
        return Apply() in self.effects

    def start(self, index: int, need_reply: bool = False) -> None:
        """The messages that start a vring, as every front-end sends them."""
        base = LOW.uva + index * 0x10000
        self.say(N.SET_VRING_NUM, VringState(index, 128), need_reply=need_reply)
        self.say(N.SET_VRING_BASE, VringState(index, 0), need_reply=need_reply)
        addr = VringAddr(index, 0, base, base + 0x2000, base + 0x1000, 0)
        self.say(N.SET_VRING_ADDR, addr, need_reply=need_reply)
        self.say(N.SET_VRING_KICK, VringFd(index, True), 1, need_reply)

    def running(self) -> list[int]:
        return [vring.index for vring in self.session.device.vrings]


def negotiated(queues: int = 3, tag: str | None = None) -> Conversation:
    """A conversation in which QEMU has negotiated features and the guest's driver is not ready."""
    talk = Conversation(queues, tag)
    talk.say(N.GET_FEATURES)
    talk.say(N.GET_PROTOCOL_FEATURES)
    talk.say(N.SET_PROTOCOL_FEATURES, U64(talk.session.offered_protocol_features()))
    talk.say(N.GET_QUEUE_NUM)
    talk.say(N.GET_MAX_MEM_SLOTS)
    talk.say(N.SET_OWNER)
    talk.say(N.GET_FEATURES)
    for index in range(queues):
        talk.say(N.SET_VRING_CALL, VringFd(index, True), 1)
        talk.say(N.SET_VRING_ERR, VringFd(index, True), 1)
    return talk


def driver_ok(talk: Conversation, queues: int = 3) -> None:
    """What QEMU sends when the guest's driver is ready."""
    talk.say(N.SET_FEATURES, U64(FEATURES))
    assert talk.ack(N.ADD_MEM_REG, MemoryRegion(LOW), 1) == 0
    assert talk.ack(N.ADD_MEM_REG, MemoryRegion(HIGH), 1) == 0
    for index in range(queues):
        talk.start(index)
    assert talk.running() == []
    for index in range(queues):
        assert talk.ack(N.SET_VRING_ENABLE, VringState(index, 1)) == 0
        assert talk.applies()
    for index in range(queues):
        talk.say(N.SET_VRING_CALL, VringFd(index, True), 1)
        assert talk.applies()


def stop(talk: Conversation, queues: int = 3) -> None:
    """What QEMU sends when the guest resets or pauses."""
    for index in range(queues):
        talk.say(N.SET_VRING_ENABLE, VringState(index, 0))
    for index in range(queues):
        assert ReplyBase(index) in talk.say(N.GET_VRING_BASE, VringState(index, 0))
        talk.session.note_base(index, 17)
        assert talk.session.base_reply(index).data.endswith(bytes([index, 0, 0, 0, 17, 0, 0, 0]))
    for index in range(queues):
        talk.say(N.SET_VRING_CALL, VringFd(index, True), 1)
    for _ in range(3):
        assert talk.ack(N.RESET_DEVICE) == 0
