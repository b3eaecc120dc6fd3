# SPDX-License-Identifier: Apache-2.0
"""What supervisor, pool and workers say to each other: JSON objects, checked by the receiver.

Two channels carry them: one fd channel to the pool (fd_channel.py) and one zmq pair per worker
(channel.py). A command has an "id" that its answer repeats; an event has none. Commands are
idempotent: they may be sent again with the same id. Trust: the supervisor takes nothing from the
sandbox as given, so every `decode_*` here raises ProtocolError for what is not as described.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vfsd.transport.errors import ProtocolError

LOG_LEVELS: Final = ("error", "warn", "info", "debug")  # most urgent first
LOG_THRESHOLDS: Final = ("off", *LOG_LEVELS)
MAX_TEXT: Final = 4096  # characters of a log line or a reason
U32_MAX: Final = (1 << 32) - 1

Content = dict[str, Any]


def decode_object(data: bytes) -> Content:
    """Decode one JSON object; anything else is a ProtocolError."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError("a packet is not JSON") from None
    if not isinstance(content, dict):
        raise ProtocolError("a packet is not a JSON object")
    return content


def encode_object(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def number(content: Mapping[str, Any], key: str, maximum: int = U32_MAX) -> int:
    """The integer 0..maximum at `key`."""
    value = content.get(key)
    if type(value) is not int or not 0 <= value <= maximum:
        raise ProtocolError(f"{key!r} is not a number up to {maximum}")
    return value


def text(content: Mapping[str, Any], key: str) -> str:
    """The text at `key`, cut to MAX_TEXT, control characters made visible."""
    value = content.get(key)
    if not isinstance(value, str):
        raise ProtocolError(f"{key!r} is not text")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value[:MAX_TEXT])


def is_logged(level: str, threshold: str) -> bool:
    """Is a line of this level wanted? ValueError if there is no such level or threshold."""
    return LOG_THRESHOLDS.index(level) <= LOG_THRESHOLDS.index(threshold)


# Supervisor -> worker.


def adopt(generation: int) -> Content:
    """Work with the device state of at least this generation; answered with Adopted."""
    return {"command": "adopt", "generation": generation}


def log_level(level: str) -> Content:
    return {"command": "log-level", "level": level}


def stop() -> Content:
    return {"command": "stop"}


# Worker -> supervisor.


@dataclass(frozen=True)
class Adopted:
    """The generation a worker works with; next avail index of each vring of its own."""

    generation: int
    last_avail: dict[int, int]
    errors: dict[int, str]


@dataclass(frozen=True)
class LogLine:
    """What a worker has for the log."""

    level: str
    text: str


@dataclass(frozen=True)
class RingBroken:
    """A worker stopped serving a ring."""

    vring: int
    reason: str


@dataclass(frozen=True)
class Hello:
    """A worker serves; `pid` as seen in its own pid namespace."""

    pid: int


def decode_adopted(content: Content) -> Adopted:
    vrings = content.get("vrings")
    if not isinstance(vrings, dict):
        raise ProtocolError("'vrings' is not an object")
    last_avail: dict[int, int] = {}
    errors: dict[int, str] = {}
    for key, status in vrings.items():
        if not key.isascii() or not key.isdigit() or len(key) > 3 or not isinstance(status, dict):
            raise ProtocolError(f"no status of a vring: {key[:20]!r}")
        last_avail[int(key)] = number(status, "last_avail", 0xFFFF)
        if status.get("error") is not None:
            errors[int(key)] = text(status, "error")
    return Adopted(number(content, "generation"), last_avail, errors)


def decode_worker_event(content: Content) -> LogLine | RingBroken | Hello:
    if "log" in content:
        level = content.get("level")
        if level not in LOG_LEVELS:
            raise ProtocolError("a log line without a level")
        return LogLine(str(level), text(content, "log"))
    match content.get("event"):
        case "ring-broken":
            return RingBroken(number(content, "vring"), text(content, "reason"))
        case "hello":
            return Hello(number(content, "pid"))
    raise ProtocolError("an event of no known kind")


# Pool -> supervisor, on the fd channel.


@dataclass(frozen=True)
class PoolReady:
    """Isolated, tables mapped, ready to create workers."""


@dataclass(frozen=True)
class PoolFailed:
    """The pool could not start and exits: one line, what, why, what to do."""

    error: str


@dataclass(frozen=True)
class WorkerDied:
    """A worker died, or ended because it was told to."""

    slot: int
    how: str
    respawned: bool


@dataclass(frozen=True)
class PoolLog:
    """What the pool itself has for the log."""

    level: str
    text: str


PoolEvent = PoolReady | PoolFailed | WorkerDied | PoolLog


def decode_pool_event(content: Content) -> PoolEvent:
    match content.get("event"):
        case "ready":
            return PoolReady()
        case "failed":
            return PoolFailed(text(content, "error"))
        case "worker-died":
            how = "signal" if content.get("signal") is not None else "status"
            return WorkerDied(
                number(content, "slot"),
                f"{how} {number(content, how)}",
                content.get("respawned") is True,
            )
    event = decode_worker_event(content)
    if isinstance(event, LogLine):
        return PoolLog(event.level, event.text)
    raise ProtocolError("an event of no known kind")


def decode_fd_numbers(content: Content, count: int) -> tuple[int, ...]:
    """The answer to "adopt": under which numbers the pool installed `count` fds."""
    fds = content.get("fds")
    if not isinstance(fds, list) or len(fds) != count:
        raise ProtocolError(f"the pool did not answer with {count} fd numbers")
    if not all(type(fd) is int and 0 <= fd <= U32_MAX >> 1 for fd in fds):
        raise ProtocolError("the pool answered with fd numbers that are none")
    return tuple(fds)
