# SPDX-License-Identifier: Apache-2.0
"""The table of system calls and the source agree: each row is needed, and no call is missing."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.worker.sandboxed import is_system_call
from vfsd.worker import seccomp

CSRC: Final = [
    Path(seccomp.__file__).parents[1] / part / "csrc" for part in ("worker", "transport")
]
SOURCES: Final = {path.name: path.read_text() for folder in CSRC for path in folder.rglob("*.[ch]")}
MODULES: Final = {
    path.name: path.read_text() for path in Path(seccomp.__file__).parent.glob("*.py")
}
LIBRARIES: Final = {"CPython", "glibc", "kernel", "zmq"}
NOT_OPS: Final = {
    "CPU",
    "DAC_OVERRIDE",
    "ENOSYS",
    "FSETID",
    "NFS",
    "SIGBUS",
    "SIGSTOP",
    "VMM",
    "O_DIRECT",
    "O_RDONLY",
}
OPCODES: Final = dict(re.findall(r"\bX\((\w+), (\w+),", SOURCES["fuse_ops.h"]))
# System call -> the function that makes it, in libc or in Python, if the names differ.
IN_C: Final = {
    "eventfd2": "eventfd",
    "exit_group": "_exit",
    "pread64": "pread",
    "rt_sigaction": "sigaction",
    "rt_sigprocmask": "pthread_sigmask",
    "tgkill": "raise",
}
IN_PYTHON: Final = {
    "close": "os.close",
    "eventfd2": "os.eventfd",
    "fcntl": "os.listdir",  # os.listdir() duplicates the fd that it is given
    "getdents64": "os.listdir",
    "getpid": "os.getpid",
    "openat": "os.open",
    "pipe2": "os.pipe2",
    "poll": "select.poll",
    "read": "os.read",
    "sched_setaffinity": "os.sched_setaffinity",
    "write": "os.write",
}
ROWS: Final = seccomp.table()


def row_id(row: seccomp.SyscallRow) -> str:
    return f"{row.name}-{row.rule}" if row.rule else row.name


def calls_it(caller: str, name: str) -> bool:
    """Does a file of this repository make this system call?"""
    if caller in SOURCES:
        called = rf"\b({IN_C.get(name, name)}\(|SYS_{name}\b)"
        return re.search(called, SOURCES[caller]) is not None
    return f"{IN_PYTHON[name]}(" in MODULES[caller]


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_each_caller_makes_the_call(row: seccomp.SyscallRow) -> None:
    ours = [caller for caller in row.callers if caller not in LIBRARIES]
    assert [caller for caller in ours if not calls_it(caller, row.name)] == []
    if not ours:
        assert re.search(r"\b\w+\(\)", row.why), "the function of the library is not named"


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_each_opcode_in_a_reason_is_served_by_a_caller(row: seccomp.SyscallRow) -> None:
    named = set(re.findall(r"\b[A-Z][A-Z0-9_]{2,}\b", row.why)) - NOT_OPS
    assert named <= OPCODES.keys(), "there is no such opcode"
    ops = [SOURCES[caller] for caller in row.callers if caller.startswith("ops_")]
    handlers = [f"int op_{OPCODES[name]}(struct fs" for name in named]
    if ops:
        assert [h for h in handlers for text in ops if h in text], "no caller serves any of them"


BEFORE_THE_FILTER: Final = {"isolate.c", "capabilities.c", "landlock.c", "process.c"}
MADE_BY: Final = {
    "fstat": "newfstatat",
    "eventfd": "eventfd2",
    "faccessat": "faccessat2",
    "nanosleep": "clock_nanosleep",
    "pread": "pread64",
    "getrlimit": "prlimit64",
}
BEFORE_IT: Final = {"memfd_create"}  # syscall_filter_compile() runs before the filter is in force


COMMENT_OR_TEXT: Final = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\])*"', re.DOTALL)
CALLED: Final = re.compile(r"\bSYS_(\w+)|(?<![\w.>])(\w+)\(")


def system_calls_in(content: str) -> set[str]:
    """The system calls that C code makes, by number or by a function of libc."""
    found = CALLED.findall(COMMENT_OR_TEXT.sub("", content))
    names = {MADE_BY.get(name, name) for name in (a or b for a, b in found)}
    return {name for name in names if is_system_call(name)}


def test_nothing_that_the_c_core_calls_is_missing() -> None:
    """A call that only a rare request makes would not be missed in a test of the daemon."""
    contents = [text for name, text in SOURCES.items() if name not in BEFORE_THE_FILTER]
    called = set().union(*map(system_calls_in, contents))
    assert len(called) > 40
    assert called - {row.name for row in ROWS} - BEFORE_IT == set()
