# SPDX-License-Identifier: Apache-2.0
"""The filter in force: what is not in the table ends the process that tries it."""

import mmap
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.worker.sandboxed import Killed, run, syscall
from vfsd.worker import seccomp
from vfsd.worker.isolation import Sandbox

CLONE_NEWUSER: Final = 0x10000000
SIGCHLD: Final = 17
TIOCSTI: Final = 0x5412
PR_SET_DUMPABLE: Final = 4

# Harmless arguments: a call that got through would only fail.
FORBIDDEN: Final = {
    "execve": (0, 0, 0),
    "execveat": (-1, 0, 0, 0, 0),
    "open": (0, 0),
    "socket": (1, 1, 0),
    "connect": (-1, 0, 0),
    "bind": (-1, 0, 0),
    "ptrace": (0, 0, 0, 0),
    "process_vm_readv": (0, 0, 0, 0, 0, 0),
    "pidfd_getfd": (-1, 0, 0),
    "unshare": (0,),
    "setns": (-1, 0),
    "mount": (0, 0, 0, 0, 0),
    "umount2": (0, 0),
    "pivot_root": (0, 0),
    "chroot": (0,),
    "open_tree": (-1, 0, 0),
    "move_mount": (-1, 0, -1, 0, 0),
    "fsopen": (0, 0),
    "bpf": (99, 0, 0),
    "io_uring_setup": (0, 0),
    "userfaultfd": (0,),
    "keyctl": (99, 0, 0, 0, 0),
    "perf_event_open": (0, 0, 0, 0, 0),
    "open_by_handle_at": (-1, 0, 0),
    "init_module": (0, 0, 0),
    "reboot": (0, 0, 0, 0),
    "seccomp": (0, 0, 0),
    "personality": (0,),
    "shmget": (0, 0, 0),
    "ioctl": (0, TIOCSTI, 0),
    "prctl": (PR_SET_DUMPABLE, 1, 0, 0, 0),
    "sched_setaffinity": (1, 0, 0),
    "clone": (CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0),
    "mmap": (0, 4096, mmap.PROT_EXEC, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0),
    "mprotect": (0, 0, mmap.PROT_EXEC),
}


def calling(name: str) -> Callable[[Sandbox], int]:
    return lambda _sandbox: syscall(name, *FORBIDDEN[name])


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_a_forbidden_call_kills(folder: Path, name: str) -> None:
    with pytest.raises(Killed) as killed:
        run(folder, calling(name))
    assert killed.value.signal is signal.SIGSYS


@pytest.mark.parametrize("mode", ["chroot", "none"])
def test_it_is_in_force_in_every_sandbox(folder: Path, mode: str) -> None:
    with pytest.raises(Killed, match="SIGSYS"):
        run(folder, calling("execve"), sandbox=mode)


def test_trap_ends_it_too(folder: Path) -> None:
    with pytest.raises(Killed, match="SIGSYS"):
        run(folder, calling("socket"), seccomp="trap")


@pytest.mark.parametrize("action", ["log", "none"])
def test_log_and_none_let_it_pass(folder: Path, action: str) -> None:
    def probe(_sandbox: Sandbox) -> int:
        os.close(syscall("socket", 1, 1, 0))
        return 5

    assert run(folder, probe, seccomp=action) == 5


def test_clone3_is_unknown_so_that_flags_can_be_seen(folder: Path) -> None:
    def probe(_sandbox: Sandbox) -> int:
        try:
            return syscall("clone3", 0, 0)
        except OSError as error:
            return error.errno or 0

    assert run(folder, probe) == 38  # ENOSYS


def test_memory_files_and_children_still_work(folder: Path) -> None:
    def probe(_sandbox: Sandbox) -> str:
        with mmap.mmap(-1, 1 << 20) as memory:
            memory[:2] = b"ok"
            text = memory[:2].decode()
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        Path("/new").write_text(text)
        os.setxattr("/new", "user.x", b"y")
        return Path("/new").read_text() + os.getxattr("/new", "user.x").decode()

    assert run(folder, probe) == "oky"


def test_every_row_has_a_reason_and_only_calls_with_rules_come_twice() -> None:
    rows = seccomp.table()
    assert all(row.why for row in rows)
    unconditional = [row.name for row in rows if row.argument is None]
    assert len(unconditional) == len(set(unconditional))
    assert {row.name for row in rows if row.argument is not None} == {
        "ioctl", "mmap", "mprotect", "clone", "prctl", "sched_setaffinity",
    }  # fmt: skip
    assert {row.name for row in rows if row.for_handles} == {"open_by_handle_at"}
    always = {row.name for row in rows if row.argument is None and not row.for_handles}
    assert not always & set(FORBIDDEN)


def test_nothing_that_the_c_core_calls_by_number_is_missing() -> None:
    """syscall(SYS_x) in the request path, which only a rare request may reach."""
    allowed = {row.name for row in seccomp.table()}
    before_the_filter = {"isolate.c", "capabilities.c", "landlock.c"}
    root = Path(seccomp.__file__).parents[1]
    called = {
        name
        for part in ("worker", "transport")
        for path in (root / part / "csrc").glob("*.c")
        if path.name not in before_the_filter
        for name in re.findall(r"\bSYS_(\w+)", path.read_text())
    }
    assert called - allowed == set()
