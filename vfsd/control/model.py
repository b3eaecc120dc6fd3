# SPDX-License-Identifier: Apache-2.0
"""The answers of a daemon, as typed values.

decode() makes a value of a dataclass from what JSON has. A field that the dataclass does not have
is ignored, since a newer daemon may have more fields. A field that is missing or has another type
is a ProtocolError, unless the field has a default.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from vfsd.transport.control_messages import printable
from vfsd.transport.errors import ProtocolError

T = TypeVar("T")


@dataclass(frozen=True)
class Pids:
    """In the pid namespace of the daemon."""

    keeper: int
    supervisor: int
    launcher: int


@dataclass(frozen=True)
class ConnectedVmm:
    """The process that is connected, as its connection names it."""

    pid: int
    uid: int


@dataclass(frozen=True)
class Settings:
    """`poll_us`: "auto" or a number."""

    log_level: str
    poll_us: int | str
    cache: str
    thread_pool_size: int


@dataclass(frozen=True)
class Protections:
    """The options of the daemon that protect the host."""

    sandbox: str
    seccomp: str
    userns: bool
    readonly: bool
    inode_file_handles: str


@dataclass(frozen=True)
class Queue:
    """A queue that runs. Queue 0 is the hiprio queue. `slot`: of the worker that serves it."""

    index: int
    size: int
    slot: int


@dataclass(frozen=True)
class Restarts:
    """How often a supervisor, and a sandbox with all its workers, took the place of another."""

    supervisor: int
    sandbox: int


@dataclass(frozen=True)
class LogRecord:
    """`time`: in seconds since 1970. `source`: empty for the supervisor."""

    time: float
    level: str
    source: str
    text: str


@dataclass(frozen=True)
class DaemonProcess:
    """`seccomp`: a filter is in force. `capabilities`: the effective set, as a mask."""

    pid: int
    role: str
    state: str
    cpu_seconds: float
    uid: int
    seccomp: bool
    capabilities: int


@dataclass(frozen=True)
class GuestSession:
    """The FUSE session: protocol 7.`minor`, and the flags of INIT (flags | flags2 << 32)."""

    minor: int
    flags: int
    offered: int


@dataclass(frozen=True)
class WorkerStarts:
    """`pid`: in the sandbox; 0: the worker is being created again. `starts`: the number of workers
    that this slot has had."""

    slot: int
    pid: int
    starts: int


@dataclass(frozen=True)
class Status:
    """What a daemon is doing. `vmm` and `guest` are None if no VMM is connected, and if its guest
    has not mounted the share. `inodes`: the number of files that the guest knows. `files`: the
    number of files that it has open. `warnings`: the latest warnings and errors."""

    name: str
    version: str
    started: float
    share: str
    socket: str | None
    pids: Pids
    vmm: ConnectedVmm | None
    settings: Settings
    protections: Protections
    inode_limit: int
    queues: list[Queue]
    ended: list[int]
    restarts: Restarts
    warnings: list[LogRecord]
    processes: list[DaemonProcess]
    pid_namespace: int
    guest: GuestSession | None
    workers: list[WorkerStarts]
    inodes: int
    files: int


@dataclass(frozen=True)
class OpCounters:
    """Of one opcode. `ns`: time spent on all requests. `latency`: the number of requests that took
    less than 2**i * 256 ns, and not less than half of that; the last number is of all above."""

    op: str
    count: int
    errors: int
    bytes: int
    ns: int
    latency: list[int]


@dataclass(frozen=True)
class WorkerCounters:
    """Of one worker slot, and all its requests; the fields of OpCounters, and how it waits."""

    slot: int
    starts: int
    sleeps: int
    spins_ns: int
    offloaded: int
    count: int
    errors: int
    bytes: int
    ns: int
    latency: list[int]


@dataclass(frozen=True)
class QueueCounters:
    """Of one queue. `batches`: how often replies were published; `kicks`: wake-ups by the guest;
    `calls`: interrupts of the guest."""

    index: int
    slot: int
    requests: int
    batches: int
    calls: int
    kicks: int
    bad_chains: int


@dataclass(frozen=True)
class Counters:
    """What workers have counted since their sandbox was started. `ns`: when, by a clock that does
    not go back. Values are of different moments, and may be anything if a guest has taken over its
    workers."""

    ns: int
    ops: list[OpCounters]
    queues: list[QueueCounters]
    workers: list[WorkerCounters]


def decode(kind: type[T], content: Any) -> T:
    """A value of a dataclass; see above."""
    if not isinstance(content, Mapping):
        raise ProtocolError(f"the answer has no {kind.__name__}")
    hints = get_type_hints(kind)
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in content:
            values[field.name] = _value(hints[field.name], content[field.name], field.name)
        elif field.default is MISSING:
            raise ProtocolError(f"the answer has no {field.name!r} of {kind.__name__}")
    return kind(**values)


def _value(kind: Any, content: Any, name: str) -> Any:
    origin = get_origin(kind)
    if origin is list and isinstance(content, list):
        return [_value(get_args(kind)[0], item, name) for item in content]
    if origin in (Union, types.UnionType):
        if content is None and type(None) in get_args(kind):
            return None
        members = [one for one in get_args(kind) if one is not type(None)]
        fitting = [one for one in members if type(content) is one]
        return _value(fitting[0] if fitting else members[0], content, name)
    if is_dataclass(kind) and isinstance(kind, type):
        return decode(kind, content)
    if kind is float and type(content) is int:
        return float(content)
    if type(content) is not kind:
        raise ProtocolError(f"{name!r} of the answer is a {type(content).__name__}")
    return printable(content) if kind is str else content
