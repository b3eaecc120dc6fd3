# SPDX-License-Identifier: Apache-2.0
"""The seccomp filter of the pool and its workers; the table is csrc/syscalls.h."""

import os
from dataclasses import dataclass
from typing import Final

from vfsd.transport.native import ffi, lib, text

ACTIONS: Final = {"kill": lib.SECCOMP_KILL, "trap": lib.SECCOMP_TRAP, "log": lib.SECCOMP_LOG}


@dataclass(frozen=True)
class Row:
    """One allowed call; `argument` is the one that is looked at, or None. `for_handles`: it is
    allowed only where inodes are held by file handles."""

    name: str
    why: str
    argument: int | None
    for_handles: bool


def table() -> list[Row]:
    ret = ffi.new("struct syscall_row const **")
    count = lib.seccomp_table(ret)
    rows = ret[0][0:count]
    return [
        Row(
            text(row.name) or "",
            text(row.why) or "",
            None if row.argument < 0 else row.argument,
            row.for_handles,
        )
        for row in rows
    ]


def confine(action: str, file_handles: bool) -> None:
    """Put the filter in force for this process and all it creates. `action`: kill, trap or log."""
    row = ffi.new("int32_t *")
    result = lib.seccomp_confine(ACTIONS[action], file_handles, row)
    if result < 0:
        where = f" (row {table()[row[0]].name})" if row[0] >= 0 else ""
        raise OSError(-result, f"{os.strerror(-result)}{where}")
