# SPDX-License-Identifier: Apache-2.0
"""The job: what every pool of a daemon is to do, as JSON in a sealed memfd, and the fds of one
pool.

The job is declared here and nowhere else: the dataclasses are its fields, encode() writes it for
the launcher, decode() reads it for the template of the pools. The command line was checked before
there was a launcher. decode() checks every value once more, since a process that is about to give
up its privileges must not start from a misunderstanding. The pool parses no options and reads no
configuration."""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Final

from vfsd.transport import idmap, option_types
from vfsd.transport.control_messages import LOG_THRESHOLDS
from vfsd.transport.option_types import INODES_MAX, IdRange, Switches
from vfsd.transport.xattrmap import parse as parse_xattrmap

CAPACITY_MAX: Final = INODES_MAX + 1
TABLES_BEFORE: Final = 3
SEGMENTS: Final = ("device", "inodes", "files", "rings", "workers")
# The fds that a pool is given. The listeners of the worker slots follow them, and then, for a
# sandbox that takes the place of a lost one, TABLES_BEFORE tables of the lost one, or, for a
# sandbox that takes the place of a sandbox that serves, the socket to that sandbox. In the
# launcher's packet to the template, the key comes before all of them.
POOL_FDS: Final = ("channel", "stderr", *SEGMENTS)
# The answer of the template (vfsd/worker/template.py): 0 and a pidfd, or an errno.
FORKED: Final = struct.Struct("=i")
ID_RANGES_MAX: Final = 340  # user_namespaces(7)


class JobError(Exception):
    """The job is not as declared; one line says which field is wrong."""


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
    if type(value) not in (int, float) or not 0 <= value <= option_types.SECONDS_MAX:
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


def _xattrmap(value: Any) -> str:
    if _text(value):
        parse_xattrmap(value)
    return str(value)


def _path(value: Any) -> str:
    if not _text(value).startswith("/"):
        raise ValueError("is not an absolute path")
    return str(value)


_id: Final = _whole(0, option_types.ID_MAX)
_cpu: Final = _whole(0, option_types.CPU_MAX)


def _id_map(value: Any) -> tuple[IdRange, ...]:
    if not isinstance(value, list) or len(value) > ID_RANGES_MAX:
        raise TypeError(f"is not a list of up to {ID_RANGES_MAX} ranges")
    try:
        return tuple(IdRange(*map(_id, item)) for item in value)
    except (TypeError, ValueError):
        raise ValueError("has an item that is not [inside, outside, count]") from None


def _cpus(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError("is not a list")
    return tuple(_cpu(item) for item in value)


def _translation(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("is not a list")
    rules = tuple(_text(rule) for rule in value)
    idmap.combine(rules)
    return rules


# A field is Annotated with its check, a function that converts a value from JSON into the field's
# type, or refuses the value (ValueError). These are the checks of plain types.
_OF_TYPE: Final[dict[Any, Callable[[Any], Any]]] = {bool: _switch, str: _text}


# Nothing compares or prints a job, and the code for both would be in keeper, launcher and
# supervisor: half a MiB, as measured.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Filesystem(Switches):
    """The operator's options about the share (`fs` in the job)."""

    cache: Annotated[str, _one_of(*option_types.CACHE_MODES)]
    entry_timeout: Annotated[float, _seconds]  # seconds
    attr_timeout: Annotated[float, _seconds]
    negative_timeout: Annotated[float, _seconds]
    lock_wait: Annotated[float | None, _seconds_or_none]  # seconds; None: for ever
    inode_file_handles: Annotated[str, _one_of(*option_types.HANDLE_MODES)]
    xattr: bool
    posix_acl: Annotated[str, _one_of(*option_types.NEGOTIATION_MODES)]
    security_label: Annotated[str, _one_of(*option_types.NEGOTIATION_MODES)]
    readdirplus: bool
    killpriv_v2_asked: bool  # the operator asked for it: report if the guest cannot
    translate_uid: Annotated[tuple[str, ...], _translation]  # rules of transport/idmap.py
    translate_gid: Annotated[tuple[str, ...], _translation]
    xattrmap: Annotated[str, _xattrmap]  # in the language of transport/xattrmap.py; "": no rules


@dataclass(frozen=True, eq=False, repr=False)
class JobFds:
    """The fds of one pool: the shared directory (O_PATH), a pipe with the key by which handles are
    signed, the fd channel, its stderr, the shared segments, one listener per worker slot.
    `before`: if this sandbox takes the place of a lost sandbox, the inode table, the file table and
    the worker table of the lost sandbox. `former`: if it takes the place of a sandbox that serves,
    the socket by which the fds of that sandbox come (heritage.py). Isolation consumes the
    directory's fd and the key, and the restoration of the session consumes `before` and `former`;
    the pool keeps the others."""

    root: int
    key: int
    channel: int
    stderr: int
    device: int
    inodes: int
    files: int
    rings: int
    workers: int
    listeners: tuple[int, ...]
    before: tuple[int, ...] = ()
    former: int | None = None

    @classmethod
    def of(cls, root: int, passed: Sequence[int], slots: int) -> "JobFds":
        """The fds of a pool with this number of worker slots, in the order of the template's packet
        (POOL_FDS); JobError if their number is wrong."""
        first = 1 + len(POOL_FDS)
        more = passed[first + slots :]
        if len(passed) < first + slots or len(more) not in (0, 1, TABLES_BEFORE):
            raise JobError(f"a pool of {slots} slots was given {len(passed)} fds")
        names = dict(zip(POOL_FDS, passed[1:first], strict=True))
        return cls(
            root=root,
            key=passed[0],
            listeners=tuple(passed[first : first + slots]),
            before=() if len(more) == 1 else tuple(more),
            former=more[0] if len(more) == 1 else None,
            **names,
        )

    @property
    def takes_over(self) -> bool:
        """Does a session of another sandbox go on in this one?"""
        return bool(self.before) or self.former is not None

    def consumed(self) -> tuple[int, ...]:
        """All fds that isolation and restoration consume."""
        former = () if self.former is None else (self.former,)
        return (self.root, self.key, *self.before, *former)

    def kept(self) -> tuple[int, ...]:
        """All fds that the pool keeps."""
        segments = (self.device, self.inodes, self.files, self.rings, self.workers)
        return (self.channel, *segments, *self.listeners)


NO_FDS: Final = JobFds.of(-1, [-1] * (1 + len(POOL_FDS)), 0)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Job:
    """Everything that a pool is given."""

    name: str
    shared_dir: Annotated[str, _path]
    sandbox: Annotated[str, _one_of(*option_types.SANDBOXES)]
    seccomp: Annotated[str, _one_of(*option_types.SECCOMP_ACTIONS)]
    slots: Annotated[int, _whole(1, option_types.REQUEST_QUEUES_MAX)]
    log_level: Annotated[str, _one_of(*LOG_THRESHOLDS)]
    poll_us: Annotated[int, _whole(option_types.POLL_AUTO, option_types.MICROSECONDS_MAX)]
    thread_pool_size: Annotated[int, _whole(0, option_types.THREADS_MAX)]
    modcaps: str
    worker_faults: Annotated[int, _whole(0, option_types.FAULTS_MAX)]  # per hour; 0: no limit
    userns: bool  # make a user namespace, even if root started us
    supervisor: Annotated[int, _id]  # the supervisor's user id
    uid_map: Annotated[tuple[IdRange, ...], _id_map]  # empty: user_namespace.py chooses
    gid_map: Annotated[tuple[IdRange, ...], _id_map]
    queue_cpus: Annotated[tuple[int, ...], _cpus]  # worker i runs on the i-th; empty: on any CPU
    inode_capacity: Annotated[int, _whole(2, CAPACITY_MAX)]
    file_capacity: Annotated[int, _whole(2, CAPACITY_MAX)]
    fs: Annotated[Filesystem, lambda value: _read(Filesystem, value, "fs.")]
    fds: JobFds = NO_FDS  # of the pool; the JSON, which is the same for every pool, has none


def _read(kind: type[Any], content: Any, prefix: str) -> Any:
    """Build the dataclass `kind` from a JSON object that must have exactly the fields of `kind`."""
    if not isinstance(content, dict):
        raise JobError(f"job: {prefix.rstrip('.') or 'it'} is not an object")
    known = {field.name: field.type for field in fields(kind) if field.type is not JobFds}
    for what, odd in (
        ("missing", known.keys() - content.keys()),
        ("unknown", content.keys() - known.keys()),
    ):
        if odd:
            raise JobError(f"job: {prefix}{min(odd)} is {what}")
    values = {}
    for name, value in content.items():
        try:
            values[name] = _check_of(known[name])(value)
        except (TypeError, ValueError) as error:
            raise JobError(f"job: {prefix}{name} {error}") from None
    return kind(**values)


def _check_of(kind: Any) -> Callable[[Any], Any]:
    """The check for a field of this type."""
    check: Callable[[Any], Any] = _OF_TYPE[kind] if kind in _OF_TYPE else kind.__metadata__[0]
    return check


def encode(job: Job) -> bytes:
    """The job in the form that decode() reads."""
    content = asdict(job)
    del content["fds"]
    return json.dumps(content).encode()


def decode(data: bytes) -> Job:
    """Read a job; JobError says in one line what is wrong with it."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise JobError("job: it is not JSON") from None
    job: Job = _read(Job, content, "")
    return job
