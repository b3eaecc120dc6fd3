# SPDX-License-Identifier: Apache-2.0
"""What supervisor, pool and workers say to each other: JSON objects, checked by the receiver.

Two channels carry them: one fd channel to the pool (fd_channel.py) and one ZMTP connection per
worker (channel.py). A command has an "id" that its answer repeats; an event has none. Commands are
idempotent: a command may be sent again with the same id. Trust: the supervisor takes nothing from
the sandbox as given, so every `decode_*` here raises ProtocolError, and nothing else, for a message
that is not as described. Numbers are bounded by what the device has, and text is cut and made
printable, so that a decoded number can be used as an index and decoded text written to a log.
"""

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from vfsd.transport.errors import ProtocolError

LOG_LEVELS: Final = ("error", "warn", "info", "debug")  # most urgent first
LOG_THRESHOLDS: Final = ("off", *LOG_LEVELS)
MAX_TEXT: Final = 4096  # characters of a log line or a reason
MAX_MESSAGE: Final = 65536  # bytes, on either channel
U32_MAX: Final = (1 << 32) - 1
MAX_PID: Final = 1 << 22  # Linux has no larger pids
OUTSIDE: Final = (signal.SIGKILL, signal.SIGTERM)  # not sent by the kernel for what a process does
MAX_STATUS: Final = 255  # the exit status of a process; signal numbers are smaller

Content = dict[str, Any]


def decode_object(data: bytes) -> Content:
    """Decode one JSON object in UTF-8; anything else, NaN included, is a ProtocolError."""
    try:
        content = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ProtocolError("a packet is not JSON") from None
    if not isinstance(content, dict):
        raise ProtocolError("a packet is not a JSON object")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


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
    return printable(value[:MAX_TEXT])[:MAX_TEXT]


def printable(value: str) -> str:
    """A text in which every character that is not printable is escaped, so that it can be
    logged."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)


def is_logged(level: str, threshold: str) -> bool:
    """Is a line of this level wanted? ValueError if there is no such level or threshold."""
    return LOG_THRESHOLDS.index(level) <= LOG_THRESHOLDS.index(threshold)


# Supervisor -> worker.


def adopt(generation: int, ends_session: bool = False) -> Content:
    """Work with the device state of at least this generation; answered with Adopted.

    `ends_session`: the guest's driver has reset the device, so end the FUSE session. The worker
    does so only while the state is of exactly this generation, in which no vring runs: a command
    that is sent again must not end the next session.
    """
    content: Content = {"command": "adopt", "generation": generation}
    return content | {"ends_session": True} if ends_session else content


def log_level(level: str) -> Content:
    return {"command": "log-level", "level": level}


def stop() -> Content:
    return {"command": "stop"}


# Worker -> supervisor.


@dataclass(frozen=True)
class Adopted:
    """The generation that a worker works with, and the next avail index of each of its vrings."""

    generation: int
    last_avail: dict[int, int]
    errors: dict[int, str]


@dataclass(frozen=True)
class LogLine:
    """A line that a worker has for the log."""

    level: str
    text: str


@dataclass(frozen=True)
class RingBroken:
    """A worker stopped serving a ring."""

    vring: int
    reason: str


@dataclass(frozen=True)
class Hello:
    """A worker serves; `pid` is its pid in its own pid namespace."""

    pid: int


def decode_adopted(content: Content, generation: int, vring_count: int) -> Adopted:
    """The answer to adopt(generation), from a worker of a device with `vring_count` vrings."""
    vrings = content.get("vrings")
    if not isinstance(vrings, dict):
        raise ProtocolError("'vrings' is not an object")
    last_avail: dict[int, int] = {}
    errors: dict[int, str] = {}
    for key, status in vrings.items():
        index = _vring_index(key, vring_count)
        if not isinstance(status, dict):
            raise ProtocolError(f"the status of vring {index} is not an object")
        last_avail[index] = number(status, "last_avail", 0xFFFF)
        if status.get("error") is not None:
            errors[index] = text(status, "error")
    reached = number(content, "generation")
    if reached < generation:
        raise ProtocolError(f"generation {reached} is acknowledged; expected {generation}")
    return Adopted(reached, last_avail, errors)


def _vring_index(key: str, vring_count: int) -> int:
    is_number = key.isascii() and key.isdigit() and len(key) <= len(str(vring_count))
    if not is_number or int(key) >= vring_count or str(int(key)) != key:
        raise ProtocolError(f"{key[:20]!r} is not one of {vring_count} vrings")
    return int(key)


def decode_worker_event(content: Content, vring_count: int) -> LogLine | RingBroken | Hello:
    """A message that a worker of a device with `vring_count` vrings sends without being asked."""
    if "log" in content:
        return LogLine(*_log_line(content))
    match content.get("event"):
        case "ring-broken":
            return RingBroken(number(content, "vring", vring_count - 1), text(content, "reason"))
        case "hello":
            return Hello(number(content, "pid", MAX_PID))
    raise ProtocolError("the kind of an event is not known")


def _log_line(content: Content) -> tuple[str, str]:
    level = content.get("level")
    if level not in LOG_LEVELS:
        raise ProtocolError("a log line has no known level")
    return str(level), text(content, "log")


# Pool -> supervisor, on the fd channel.


@dataclass(frozen=True)
class PoolReady:
    """The sandbox is isolated and has mapped its tables: orders are carried out from now on.
    `opens_handles`: workers may open any file handle themselves."""

    opens_handles: bool


@dataclass(frozen=True)
class PoolPrepared:
    """The sandbox is isolated, and waits for the session of the sandbox that serves."""


@dataclass(frozen=True)
class PoolFailed:
    """The pool could not start and exits. One line says what failed, why, and what to do."""

    error: str


@dataclass(frozen=True)
class WorkerDied:
    """A worker died, or ended because the pool stopped it. `is_crash`: a signal ended the worker
    that does not come from outside."""

    slot: int
    how: str
    respawned: bool
    is_crash: bool = False


@dataclass(frozen=True)
class PoolReplaced:
    """A pool died, and this pool goes on. Orders without an answer may be lost; an order that is
    sent again, with the same id, is carried out once."""

    how: str


@dataclass(frozen=True)
class PoolLog:
    """A line that the pool itself has for the log."""

    level: str
    text: str


PoolEvent = PoolReady | PoolPrepared | PoolFailed | PoolReplaced | WorkerDied | PoolLog


def decode_pool_event(content: Content, slots: int) -> PoolEvent:
    """A message that a pool of `slots` worker slots sends without being asked."""
    if "log" in content:
        return PoolLog(*_log_line(content))
    match content.get("event"):
        case "ready":
            return PoolReady(content.get("opens_handles") is True)
        case "prepared":
            return PoolPrepared()
        case "failed":
            return PoolFailed(text(content, "error"))
        case "worker-died":
            return WorkerDied(
                number(content, "slot", slots - 1),
                _how(content),
                content.get("respawned") is True,
                content.get("signal") not in (None, *OUTSIDE),
            )
        case "pool-replaced":
            return PoolReplaced(_how(content))
    raise ProtocolError("the kind of an event is not known")


def _how(content: Content) -> str:
    """How a process ended, in words."""
    how = "signal" if content.get("signal") is not None else "status"
    return f"{how} {number(content, how, MAX_STATUS)}"


def decode_refusal(content: Content) -> str | None:
    """Why the pool refused a command; None if it obeyed."""
    return text(content, "error") if "error" in content else None


def decode_fd_numbers(content: Content, count: int) -> tuple[int, ...]:
    """The answer to "adopt": the numbers that `count` fds have in the sandboxed fd table."""
    fds = content.get("fds")
    if not isinstance(fds, list) or len(fds) != count:
        raise ProtocolError(f"the answer of the pool is not a list of {count} fd numbers")
    if not all(type(fd) is int and 0 <= fd <= U32_MAX >> 1 for fd in fds):
        raise ProtocolError("the answer of the pool has an item that is not a fd number")
    if len(set(fds)) != count:
        raise ProtocolError("the answer of the pool has the same fd number twice")
    return tuple(fds)


def decode_spawned(content: Content) -> int:
    """The answer to "spawn": the pid of the worker in its own pid namespace; 0 if it died."""
    return number(content, "pid", MAX_PID)
