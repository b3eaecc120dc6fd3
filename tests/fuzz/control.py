# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: a pool or a worker that was taken over and says anything to the supervisor.

Input: one byte that chooses the receiver, then the packet. A packet that is not JSON is turned into
JSON with the keys and values that the protocol has.

What must hold: a packet decodes into what its receiver works with, or is a ProtocolError; text for
the log has no control character and is bounded.
"""

import json
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, Final

from tests.fuzz.reader import Reader
from vfsd.transport import control_messages as messages
from vfsd.transport.errors import ProtocolError

KEYS: Final = (
    "event", "log", "level", "id", "pid", "slot", "signal", "status", "respawned", "error", "fds",
    "vrings", "vring", "reason", "generation", "last_avail", "0", "1", "999",
)  # fmt: skip
WORDS: Final = (
    "ready", "failed", "worker-died", "ring-broken", "hello", "error", "warn", "info", "debug",
    "off", "", "\x1b[2J\n", "x" * 5000,
)  # fmt: skip
NUMBERS: Final = (0, 1, -1, 64, 65535, 65536, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1 << 64, 1e300)
DEPTH_MAX: Final = 4
SLOTS: Final = 3  # slots of the pool
VRINGS: Final = 5
GENERATION: Final = 4  # the generation that the worker was asked to adopt

RECEIVERS: Final[tuple[Callable[[messages.Content], Any], ...]] = (
    lambda content: messages.decode_pool_event(content, SLOTS),
    lambda content: messages.decode_worker_event(content, VRINGS),
    lambda content: messages.decode_adopted(content, GENERATION, VRINGS),
    lambda content: messages.decode_fd_numbers(content, 2),
    lambda content: (messages.decode_refusal(content) or "",),
    lambda content: (messages.decode_spawned(content),),
)


def _value(reader: Reader, depth: int) -> Any:
    kind = reader.number() % (8 if depth < DEPTH_MAX else 6)
    match kind:
        case 0:
            return reader.choice(NUMBERS)
        case 1:
            return reader.choice(WORDS)
        case 2:
            return reader.choice((None, True, False))
        case 3:
            return reader.number(4)
        case 4:
            return reader.text()
        case 5:
            return reader.number() - 128
        case 6:
            return [_value(reader, depth + 1) for _ in range(reader.number() % 4)]
    return _object(reader, depth + 1)


def _object(reader: Reader, depth: int) -> dict[str, Any]:
    return {reader.choice(KEYS): _value(reader, depth) for _ in range(reader.number() % 8)}


def _packet(reader: Reader) -> bytes:
    kind = reader.number()
    if kind % 4 == 0:
        return reader.bytes(1 << 16)
    return json.dumps(_object(reader, 0)).encode()


def _check(value: Any) -> None:
    """Check that a value may go on to the log or into arithmetic."""
    if isinstance(value, str):
        assert value.isprintable()
        assert len(value) <= messages.MAX_TEXT
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key)
            _check(item)
    elif isinstance(value, tuple):
        for item in value:
            _check(item)
    else:
        assert isinstance(value, int)
        assert 0 <= value <= messages.U32_MAX


def run(data: bytes) -> None:
    """Decode one packet."""
    reader = Reader(data)
    receiver = reader.choice(RECEIVERS)
    try:
        decoded = receiver(messages.decode_object(_packet(reader)))
    except ProtocolError as error:
        decoded = (str(error),)
    if isinstance(decoded, messages.Adopted):
        assert decoded.generation >= GENERATION
        assert {*decoded.last_avail, *decoded.errors} <= {*range(VRINGS)}
    _check(decoded if isinstance(decoded, tuple) else astuple(decoded))
