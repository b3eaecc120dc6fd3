# SPDX-License-Identifier: Apache-2.0
"""The seccomp filters of the pool and its workers; the table is syscalls.h.

The pool is confined once, at the end of its isolation, to the calls of every role. Each worker adds
a second filter before it does anything else; the pool compiles that filter, since libseccomp would
take milliseconds and a megabyte in each worker.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vfsd.transport.job import Job
from vfsd.transport.native import check, ffi, lib, text
from vfsd.worker import condition
from vfsd.worker.condition import Condition
from vfsd.worker.handles import Outcome

ACTIONS: Final = {"kill": lib.SECCOMP_KILL, "trap": lib.SECCOMP_TRAP, "log": lib.SECCOMP_LOG}
ROLES: Final = {
    lib.ROLE_POOL: "pool",
    lib.ROLE_LOOP: "loop",
    lib.ROLE_THREAD: "threads",
    lib.ROLE_GUARD: "guard",
    lib.ROLE_BROKER: "broker",
}


CONDITIONS: Final[Mapping[int, Condition]] = {
    lib.IF_HANDLES: condition.HANDLES,
    lib.IF_SIGNED: condition.SIGNED,
    lib.IF_XATTR: condition.XATTR,
    lib.IF_WRITABLE: condition.WRITABLE,
    lib.IF_READONLY: condition.READONLY,
    lib.IF_FLOCK: condition.FLOCK,
    lib.IF_POSIX_LOCK: condition.POSIX_LOCK,
    lib.IF_DIRECT_IO: condition.DIRECT_IO,
    lib.IF_QUEUE_CPUS: condition.QUEUE_CPUS,
    lib.IF_IDS: condition.IDS,
    lib.IF_NEVER: condition.NEVER,
}


@dataclass(frozen=True)
class SyscallRow:
    """One row of the table. `rule`: the values that the arguments must have; "" for any. `roles`,
    `conditions`: in words. `callers`: files of vfsd, or libraries."""

    name: str
    why: str
    rule: str
    roles: tuple[str, ...]
    conditions: tuple[str, ...]
    callers: tuple[str, ...]


def _words(bits: int, words: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(word for bit, word in words.items() if bits & bit)


def _row(row: Any) -> SyscallRow:
    rule = text(row.text) or ""
    return SyscallRow(
        name=text(row.rule.name) or "",
        why=text(row.why) or "",
        rule="" if rule == "ANY" else rule,
        roles=_words(row.roles, ROLES),
        conditions=_words(row.conditions, {bit: c.words for bit, c in CONDITIONS.items()}),
        callers=tuple((text(row.callers) or "").split()),
    )


def table() -> list[SyscallRow]:
    ret = ffi.new("struct syscall_row const **")
    count = lib.seccomp_table(ret)
    return [_row(row) for row in ret[0][0:count]]


def conditions(job: Job, outcome: Outcome) -> int:
    """The conditions that hold for this process, as a mask. `outcome`: how inodes are held."""
    return sum(bit for bit, c in CONDITIONS.items() if c.holds(job, outcome))


def _checked(result: int, row: int) -> int:
    if result < 0:
        where = f" (row {table()[row].name})" if row >= 0 else ""
        raise OSError(-result, f"{os.strerror(-result)}{where}")
    return result


def confine_pool(action: str, conditions: int) -> None:
    """Confine this process, and all processes that it creates, to the rows of every role. `action`:
    kill, trap or log. OSError names the row that libseccomp refused."""
    row = ffi.new("int32_t *")
    _checked(lib.seccomp_confine_pool(ACTIONS[action], conditions, row), row[0])


def compile_worker(action: str, conditions: int) -> bytes:
    """The filter for confine_worker(). Must be called before confine_pool(); OSError as in
    confine_pool()."""
    row = ffi.new("int32_t *")
    room: Any = ffi.new("uint8_t[]", lib.SECCOMP_PROGRAM_MAX + 1)
    size = _checked(lib.seccomp_compile_worker(ACTIONS[action], conditions, room, row), row[0])
    return bytes(ffi.buffer(room, size))


def confine_worker(program: bytes, own_socket: int = -1) -> None:
    """Confine this process, a worker, further; b"" means without a filter. `own_socket`: this
    worker's socket to the broker of file handles, or -1. OSError if the filter cannot be
    installed."""
    if program:
        copy: Any = ffi.new("uint8_t[]", program)
        check(lib.syscall_filter_install(copy, len(program), own_socket))
