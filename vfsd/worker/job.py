# SPDX-License-Identifier: Apache-2.0
"""The job: what one pool is to do, as the launcher wrote it into a sealed memfd (JSON).

The command line was checked before there was a launcher; here every value is checked once more,
since a process that is about to give up its privileges should not start from a misunderstanding.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from vfsd.transport import idmap
from vfsd.transport.control_messages import LOG_THRESHOLDS
from vfsd.transport.xattrmap import Rule
from vfsd.transport.xattrmap import parse as parse_xattrmap

MAX_SLOTS: Final = 64
MAX_CAPACITY: Final = 1 << 28
MAX_SECONDS: Final = 10 * 366 * 86400.0
MAX_ID: Final = (1 << 32) - 2
MAX_ID_RANGES: Final = 340  # user_namespaces(7)
MAX_CPU: Final = 1 << 16
MAX_FAULTS: Final = 1_000_000


class JobError(Exception):
    """The job is not as described; one line says where."""


@dataclass(frozen=True)
class Filesystem:
    """What the operator's options say about the share (`fs` in the job)."""

    cache: str
    entry_timeout: float  # seconds
    attr_timeout: float
    inode_file_handles: str
    negative_timeout: float
    lock_wait: float | None  # seconds; None: for ever
    xattr: bool
    posix_acl: str  # "auto": if the guest can; "always": no session without
    writeback: bool
    readdirplus: bool
    allow_direct_io: bool
    announce_submounts: bool
    idmapped_mounts: bool
    killpriv_v2: bool  # if the guest can
    killpriv_v2_asked: bool  # the operator wants to know if it cannot
    flock: bool
    posix_lock: bool
    security_label: str
    readonly: bool
    allow_mmap: bool
    preserve_noatime: bool
    allow_project_ids: bool
    translate_uid: tuple[str, ...]  # rules of transport/idmap.py
    translate_gid: tuple[str, ...]
    xattrmap: tuple[Rule, ...]  # as text in the job; empty: names are what they are


@dataclass(frozen=True)
class Fds:
    """The inherited fds: the shared directory (O_PATH), the fd channel, the shared segments, one
    listener per worker slot. Isolation uses up the first; the pool keeps the others."""

    root: int
    channel: int
    device: int
    inodes: int
    files: int
    rings: int
    workers: int
    listeners: tuple[int, ...]

    def kept(self) -> tuple[int, ...]:
        """All but the shared directory's."""
        segments = (self.device, self.inodes, self.files, self.rings, self.workers)
        return (self.channel, *segments, *self.listeners)


@dataclass(frozen=True)
class IdRange:
    """`count` ids from `inside` on, in the sandbox, are those from `outside` on."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True)
class Job:
    """Everything a pool is told."""

    name: str
    shared_dir: str
    sandbox: str
    seccomp: str
    slots: int
    log_level: str
    poll_us: int  # -1: adaptive
    thread_pool_size: int
    modcaps: str
    worker_faults: int  # in an hour, before a worker is not created again; 0: any number
    userns: bool  # a user namespace although started by root
    supervisor: int  # its user id
    uid_map: tuple["IdRange", ...]  # of the user namespace; none: see user_namespace.py
    gid_map: tuple["IdRange", ...]
    queue_cpus: tuple[int, ...]  # worker i runs on the i-th; none: anywhere
    inode_capacity: int
    file_capacity: int
    fs: Filesystem
    fds: Fds


def _one_of(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return value

    return check


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"is not a whole number from {low} to {high}")
        return value

    return check


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= MAX_SECONDS:
        raise ValueError("is not a number of seconds")
    return float(value)


def _seconds_or_none(value: Any) -> float | None:
    return None if value is None else _seconds(value)


def _switch(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("is not true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("is not text")
    return value


def _xattrmap(value: Any) -> tuple[Rule, ...]:
    return parse_xattrmap(_text(value)) if value != "" else ()


def _path(value: Any) -> str:
    if not _text(value).startswith("/"):
        raise ValueError("is not an absolute path")
    return str(value)


_fd: Final = _whole(3, 1 << 20)
_id: Final = _whole(0, MAX_ID)
_cpu: Final = _whole(0, MAX_CPU)


def _id_map(value: Any) -> tuple[IdRange, ...]:
    if not isinstance(value, list) or len(value) > MAX_ID_RANGES:
        raise TypeError(f"is not a list of up to {MAX_ID_RANGES} ranges")
    try:
        return tuple(IdRange(*map(_id, item)) for item in value)
    except (TypeError, ValueError):
        raise ValueError("has an item that is not [inside, outside, count]") from None


def _cpus(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError("is not a list")
    return tuple(_cpu(item) for item in value)


def _fds(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError("is not a list")
    return tuple(_fd(item) for item in value)


def _translation(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("is not a list")
    rules = tuple(_text(rule) for rule in value)
    idmap.combine(rules)
    return rules


_FS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "cache": _one_of("never", "metadata", "auto", "always"),
    "entry_timeout": _seconds,
    "attr_timeout": _seconds,
    "inode_file_handles": _one_of("auto", "never", "signed", "prefer", "mandatory"),
    "negative_timeout": _seconds,
    "lock_wait": _seconds_or_none,
    "posix_acl": _one_of("never", "auto", "always"),
    "security_label": _one_of("never", "auto", "always"),
    "translate_uid": _translation,
    "translate_gid": _translation,
    "xattrmap": _xattrmap,
}

_JOB: Final[Mapping[str, Callable[[Any], Any]]] = {
    "name": _text,
    "shared_dir": _path,
    "sandbox": _one_of("namespace", "chroot", "none"),
    "seccomp": _one_of("kill", "log", "trap", "none"),
    "slots": _whole(1, MAX_SLOTS),
    "log_level": _one_of(*LOG_THRESHOLDS),
    "poll_us": _whole(-1, 1_000_000),
    "thread_pool_size": _whole(0, 1024),
    "modcaps": _text,
    "userns": _switch,
    "supervisor": _id,
    "worker_faults": _whole(0, MAX_FAULTS),
    "uid_map": _id_map,
    "gid_map": _id_map,
    "queue_cpus": _cpus,
    "inode_capacity": _whole(2, MAX_CAPACITY),
    "file_capacity": _whole(2, MAX_CAPACITY),
    "fs": lambda value: _read(Filesystem, value, "fs.", lambda name: _FS.get(name, _switch)),
    "fds": lambda value: _read(
        Fds, value, "fds.", lambda name: _fds if name == "listeners" else _fd
    ),
}


def _read(
    kind: type[Any], content: Any, prefix: str, check_of: Callable[[str], Callable[[Any], Any]]
) -> Any:
    """Build the dataclass `kind` from a JSON object that must have exactly its fields."""
    if not isinstance(content, dict):
        raise JobError(f"job: {prefix.rstrip('.') or 'it'} is not an object")
    names = {field.name for field in fields(kind)}
    for what, odd in (("missing", names - content.keys()), ("unknown", content.keys() - names)):
        if odd:
            raise JobError(f"job: {prefix}{min(odd)} is {what}")
    values = {}
    for name, value in content.items():
        try:
            values[name] = check_of(name)(value)
        except (TypeError, ValueError) as error:
            raise JobError(f"job: {prefix}{name} {error}") from None
    return kind(**values)


def parse(data: bytes) -> Job:
    """Read a job; JobError says in one line what is wrong with it."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise JobError("job: it is not JSON") from None
    job: Job = _read(Job, content, "", lambda name: _JOB[name])
    if len(job.fds.listeners) != job.slots:
        raise JobError(f"job: fds.listeners are not {job.slots}, one per worker slot")
    numbers = (job.fds.root, *job.fds.kept())
    if len(set(numbers)) != len(numbers):
        raise JobError("job: fds has one fd twice")
    return job
