# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: a front-end that sends any messages in any order, with any fds.

Input: one byte of settings, then messages: a kind, flags, the number of fds, and a payload. The
payload is made of numbers which make sense now and then (the addresses of regions that exist,
indexes of vrings), since a session refuses most other numbers at once.

What must hold: every message is obeyed or refused with ProtocolError; a session owns each fd once,
gives up the fds that it does not need any more, and leaves no other fd open; a refused message
changes nothing; the session that is stored for a successor and restored is the same session.
"""

import json
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tests.fuzz.reader import Reader
from vfsd.supervisor.effects import ORDER, Close, Effect, decode_effect, encode_effect
from vfsd.supervisor.session import FEATURES, PROTOCOL_FEATURES, Session
from vfsd.transport.errors import ProtocolError
from vfsd.transport.vhost_user import (
    HEADER,
    MESSAGES,
    Header,
    decode_header,
    decode_message,
    expects_fds,
)

QUEUES: Final = 3
FIRST_FD: Final = 1000  # fds are mere numbers here: no file is open behind them
NUMBERS: Final = sorted(MESSAGES)
WORDS: Final = (
    0, 1, 2, 3, 16, 256, 0x1000, 0x10000, 0x20000, 0x7F0000000000, 0x7F0000010000, FEATURES,
    PROTOCOL_FEATURES, 0x100, 0x101, 1 << 63, (1 << 64) - 1, (1 << 32) - 1,
)  # fmt: skip


@dataclass
class Frontend:
    """The session, and the fds that should be open."""

    session: Session
    open: set[int] = field(default_factory=set)
    next_fd: int = FIRST_FD

    def fds(self, count: int) -> tuple[int, ...]:
        self.next_fd += count
        return tuple(range(self.next_fd - count, self.next_fd))

    def state(self) -> tuple[object, ...]:
        """All state that a message may change; this is cheaper than a snapshot()."""
        session = self.session
        vrings = tuple(tuple(vars(vring).values()) for vring in session.vrings)
        rows = tuple(session.memory.rows)
        return session.features, session.protocol_features, session.inflight, rows, vrings

    def send(self, header: Header, payload: bytes, fds: tuple[int, ...]) -> None:
        before = self.state()
        try:
            effects = self.session.handle(decode_message(header, payload, fds))
        except ProtocolError as error:
            assert self.state() == before, "a refused message has changed something"
            with suppress(ProtocolError):
                self.session.refuse(header, error)
            return
        self.open |= set(fds)
        for effect in effects:
            self.carry_out(effect)
        owned = self.session.fds()
        assert len(owned) == len(set(owned)), "an fd is owned twice"
        assert set(owned) == self.open, "an fd is leaked, or closed while it is in use"
        assert self.session.device.fds() <= self.open

    def carry_out(self, effect: Effect) -> None:
        assert isinstance(effect, ORDER)
        stored = json.loads(json.dumps(encode_effect(effect)))
        assert decode_effect(stored) == effect
        if isinstance(effect, Close):
            assert set(effect.fds) <= self.open, "the session closes an fd that it does not own"
            assert len(effect.fds) == len(set(effect.fds)), "the session closes an fd twice"
            self.open -= set(effect.fds)


def _word(reader: Reader) -> int:
    choice = reader.number()
    return WORDS[choice] if choice < len(WORDS) else reader.number(8)


def _payload(reader: Reader) -> bytes:
    """Words of 4 and 8 bytes, or plain bytes."""
    parts = []
    for _ in range(reader.number() % 48):
        match reader.number() % 4:
            case 0:
                parts.append(struct.pack("=Q", _word(reader)))
            case 1:
                parts.append(struct.pack("=I", _word(reader) & 0xFFFFFFFF))
            case 2:
                parts.append(bytes(4 * (reader.number() % 64)))
            case _:
                parts.append(reader.bytes(reader.number() % 16))
    return b"".join(parts)


def _message(reader: Reader) -> tuple[bytes, bytes, int]:
    """The header and payload of a message as sent, and the number of fds."""
    number = reader.choice(NUMBERS) if (kind := reader.number()) < 240 else kind
    flags = 1 | (reader.number() & 8) if kind < 250 else reader.number(4)
    payload = _payload(reader)
    size = len(payload) if kind < 252 else reader.number(4)
    return HEADER.pack(number, flags, size), payload, reader.number() % 10


def run(data: bytes) -> None:
    """Run one conversation."""
    reader = Reader(data)
    frontend = Frontend(Session(QUEUES, "fs" if reader.number() & 1 else None))
    while reader:
        head, payload, count = _message(reader)
        try:
            header = decode_header(head)
        except ProtocolError:
            continue
        wanted = count if count > 1 else int(expects_fds(header, payload))
        frontend.send(header, payload, frontend.fds(wanted))
    stored = json.loads(json.dumps(frontend.session.snapshot()))
    restored = Session.restore(stored)
    assert restored.snapshot() == frontend.session.snapshot()
    assert restored.device == frontend.session.device
