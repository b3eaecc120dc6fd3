# SPDX-License-Identifier: Apache-2.0
"""The filters in force: a system call that is not in the table ends the process that makes it."""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import signal
from pathlib import Path
from typing import Any, Final

import pytest

from tests.worker.pool_process import FS
from tests.worker.sandboxed import run, syscall
from vfsd.transport.native import check, lib
from vfsd.worker import seccomp
from vfsd.worker.sandbox import Sandbox

CLONE_NEWUSER: Final = 0x10000000
CLONE_FILES: Final = 0x400
CLONE_SIBLING: Final = CLONE_FILES | 0x8000 | 0x100000 | 17  # PARENT, PARENT_SETTID, SIGCHLD
CLONE_VM: Final = 0x100
CLONE_THREAD_FLAGS: Final = 0x10F00  # VM, FS, FILES, SIGHAND, THREAD
SIGCHLD: Final = 17
TIOCSTI: Final = 0x5412
PR_SET_DUMPABLE: Final = 4

SCMP_ACT_ALLOW: Final = 0x7FFF0000
SCMP_ACT_ERRNO: Final = 0x00050000
SCHED_OTHER: Final = 0
SCHED_FIFO: Final = 1
SCHED_IDLE: Final = 5
SCHED_RESET_ON_FORK: Final = 0x40000000
F_OFD_GETLK: Final = 36
F_OFD_SETLK: Final = 37
FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FSSETXATTR: Final = 0x401C5820
RLIMIT_NOFILE: Final = 7
SECCOMP_SET_MODE_FILTER: Final = 1

# The arguments are harmless: if the filter lets a call through, the call only fails.
Calls = dict[str, tuple[Any, ...]]
FORBIDDEN: Final[Calls] = {
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
    "openat2": (-1, 0, 0, 0),
    "open_by_handle_at": (-1, 0, 0),
    "init_module": (0, 0, 0),
    "reboot": (0, 0, 0, 0),
    "seccomp": (0, 0, 0),
    "personality": (0,),
    "shmget": (0, 0, 0),
    "ioctl": (0, TIOCSTI, 0),
    "prctl": (PR_SET_DUMPABLE, 1, 0, 0, 0),
    "sched_setaffinity": (0, 0, 0),
    "prlimit64": (0, RLIMIT_NOFILE, 1, 0),
    "pidfd_send_signal": (-1, 0, 0, 0),
    "accept": (-1, 0, 0),
    "setsockopt": (-1, 0, 0, 0, 0),
    "membarrier": (99, 0, 0),
    "io_setup": (0, 0),
    "flock": (-1, 0),
    "memfd_create": (0, 0),
    "clone": (CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0),
    "mmap": (0, 4096, mmap.PROT_EXEC, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0),
    "mprotect": (0, 0, mmap.PROT_EXEC),
    "waitid": (0, 1 << 30, 0, 0, 0),
}


# Calls that the pool makes and that a worker must not make. No argument is the number of a process
# or fd that exists.
FORBIDDEN_TO_WORKERS: Final[Calls] = {
    "clone": (CLONE_FILES | SIGCHLD, 0, 0, 0, 0),
    "kill": (1 << 30, 0),
    "pipe2": (0, 0),
    "tgkill": (1, 1, 0),
    "wait4": (-1, 0, 0, 0),
    "recvmsg": (-1, 0, 0),
    "sendmsg": (-1, 0, 0),
    "seccomp": (SECCOMP_SET_MODE_FILTER, 0, 0),
}
FCNTLS: Final = {
    "F_SETOWN": fcntl.F_SETOWN,
    "F_SETSIG": fcntl.F_SETSIG,
    "F_SETLEASE": fcntl.F_SETLEASE,
    "F_NOTIFY": fcntl.F_NOTIFY,
    "F_SETFD": fcntl.F_SETFD,
    "F_ADD_SEALS": fcntl.F_ADD_SEALS,
    "F_DUPFD": fcntl.F_DUPFD,
    "F_SETLK": fcntl.F_SETLK,
    "F_OFD_SETLK": F_OFD_SETLK,
}
# The arguments of a call, job options with which workers need the call, and options with which
# they do not.
Need = tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]
CHANGES: Final = (
    "mkdirat", "mknodat", "symlinkat", "linkat", "unlinkat", "renameat", "renameat2", "fchmodat",
    "fchownat", "utimensat", "ftruncate", "fallocate", "pwritev2", "copy_file_range",
    "removexattr", "pwritev",
)  # fmt: skip
NEED_OPTION: Final[dict[str, Need]] = {
    "flock": ((-1, 0), {"flock": True}, {}),
    "io_setup": ((0, 0), {"allow_direct_io": True}, {}),
    "getxattr": ((0, 0, 0, 0), {}, {"xattr": False}),
    "setxattr": ((0, 0, 0, 0, 0), {}, {"xattr": False}),
    "open_by_handle_at": ((-1, 0, 0), {"inode_file_handles": "prefer"}, {}),
    **{name: ((-1, 0, 0, 0, 0), {}, {"readonly": True}) for name in CHANGES},
}


# Name of a case in a test -> a call and its arguments.
Named = dict[str, tuple[Any, ...]]
WORKER: Final = True
POOL: Final = False


def try_in_child(sandbox: Sandbox, confines_itself: bool, call: tuple[Any, ...]) -> str:
    """The outcome for a process that makes the call: "ok", or the name of an error or signal."""
    pid = check(lib.clone_process())
    if pid == 0:
        status = 255
        try:
            seccomp.confine_worker(sandbox.worker_filter if confines_itself else b"")
            syscall(*call)
            status = 0
        except OSError as error:
            status = error.errno or 254
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        return signal.Signals(-code).name
    return errno.errorcode.get(code, f"status {code}") if code else "ok"


def outcomes(folder: Path, role: bool, calls: Named, **job: Any) -> dict[str, str]:
    """The outcome of each call in the pool or in a worker, which `role` selects."""

    def probe(sandbox: Sandbox) -> dict[str, str]:
        return {name: try_in_child(sandbox, role, call) for name, call in calls.items()}

    found: dict[str, str] = run(folder, probe, **job)
    return found


def named(calls: Calls) -> Named:
    return {name: (name, *arguments) for name, arguments in calls.items()}


def expect(found: dict[str, str], outcome: str) -> None:
    assert found == dict.fromkeys(found, outcome)


@pytest.mark.parametrize("mode", ["namespace", "chroot", "none"])
@pytest.mark.parametrize("action", ["kill", "trap"])
def test_a_forbidden_call_kills_the_pool(folder: Path, mode: str, action: str) -> None:
    calls = named(FORBIDDEN)
    expect(outcomes(folder, POOL, calls, sandbox=mode, seccomp=action), "SIGSYS")


@pytest.mark.parametrize("mode", ["namespace", "chroot", "none"])
@pytest.mark.parametrize("action", ["kill", "trap"])
def test_a_worker_is_killed_by_forbidden_calls_and_by_those_of_the_pool(
    folder: Path, mode: str, action: str
) -> None:
    calls = named(FORBIDDEN | FORBIDDEN_TO_WORKERS)
    calls["clone, a sibling"] = ("clone", CLONE_SIBLING, 0, 0, 0, 0)
    expect(outcomes(folder, WORKER, calls, sandbox=mode, seccomp=action), "SIGSYS")


def test_what_the_pool_needs_it_may(folder: Path) -> None:
    calls = named(FORBIDDEN_TO_WORKERS)
    del calls["clone"]  # in the pool this call succeeds
    found = outcomes(folder, POOL, calls)
    assert "SIGSYS" not in found.values()


def test_a_worker_uses_fcntl_for_few_things(folder: Path) -> None:
    calls = {name: ("fcntl", 0, command, 0) for name, command in FCNTLS.items()}
    expect(outcomes(folder, WORKER, calls), "SIGSYS")
    allowed = {"F_GETFL": ("fcntl", 0, fcntl.F_GETFL), "F_GET_SEALS": ("fcntl", -1, 1034)}
    assert outcomes(folder, WORKER, allowed) == {"F_GETFL": "ok", "F_GET_SEALS": "EBADF"}


@pytest.mark.parametrize("name", sorted(NEED_OPTION))
def test_a_call_that_an_option_needs_is_allowed_with_that_option_only(
    folder: Path, name: str
) -> None:
    arguments, needed, without = NEED_OPTION[name]
    calls = named({name: arguments})
    expect(outcomes(folder, WORKER, calls, fs=FS | without), "SIGSYS")
    (outcome,) = outcomes(folder, WORKER, calls, fs=FS | needed).values()
    assert outcome in ("EBADF", "EFAULT", "EINVAL", "ENOENT"), "the kernel has not seen it"


def test_record_locks_need_their_option(folder: Path) -> None:
    calls = {"get": ("fcntl", -1, F_OFD_GETLK, 0), "set": ("fcntl", -1, F_OFD_SETLK, 0)}
    expect(outcomes(folder, WORKER, calls), "SIGSYS")
    expect(outcomes(folder, WORKER, calls, fs=FS | {"posix_lock": True}), "EBADF")


def test_changing_inode_flags_needs_a_writable_share(folder: Path) -> None:
    setting = {"flags": ("ioctl", -1, FS_IOC_SETFLAGS, 0), "x": ("ioctl", -1, FS_IOC_FSSETXATTR, 0)}
    reading = {"flags": ("ioctl", -1, FS_IOC_GETFLAGS, 0), "x": ("ioctl", -1, FS_IOC_FSGETXATTR, 0)}
    readonly = FS | {"readonly": True}
    expect(outcomes(folder, WORKER, setting, fs=readonly), "SIGSYS")
    expect(outcomes(folder, WORKER, reading, fs=readonly), "EBADF")
    expect(outcomes(folder, WORKER, setting), "EBADF")


def test_a_worker_is_pinned_only_where_the_operator_says_so(folder: Path) -> None:
    calls = {"itself": ("sched_setaffinity", 0, 0, 0), "init": ("sched_setaffinity", 1, 0, 0)}
    expect(outcomes(folder, WORKER, calls), "SIGSYS")
    found = outcomes(folder, WORKER, calls, queue_cpus=[0])
    assert found == {"itself": "EINVAL", "init": "SIGSYS"}


def test_an_ordinary_user_has_no_ids_to_switch_to(folder: Path) -> None:
    calls = named({"setresuid": (-1, -1, -1)})
    expect(outcomes(folder, WORKER, calls, uid=1000, sandbox="none"), "SIGSYS")
    expect(outcomes(folder, WORKER, calls), "ok")


def test_a_worker_reads_limits_of_its_own(folder: Path) -> None:
    calls = {
        "read": ("prlimit64", 0, RLIMIT_NOFILE, 0, 0),
        "set": ("prlimit64", 0, RLIMIT_NOFILE, 1 << 32, 0),
        "others": ("prlimit64", 1, RLIMIT_NOFILE, 0, 0),
    }
    assert outcomes(folder, WORKER, calls) == {"read": "ok", "set": "SIGSYS", "others": "SIGSYS"}


def test_a_worker_signals_itself_only(folder: Path) -> None:
    """The pool compiles the filter, so the pid in it must be set by the worker that installs it."""

    def probe(sandbox: Sandbox) -> list[int]:
        pool, codes = os.getpid(), []
        for other in (None, pool, 1):
            pid = check(lib.clone_process())
            if pid == 0:
                seccomp.confine_worker(sandbox.worker_filter)
                target = os.getpid() if other is None else other
                syscall("tgkill", target, target, 0)
                os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return codes

    assert run(folder, probe) == [0, -signal.SIGSYS, -signal.SIGSYS]


def test_a_worker_makes_threads_and_no_process(folder: Path) -> None:
    calls = {
        # Without CLONE_VM the kernel returns EINVAL, so that no thread starts without a stack.
        "thread": ("clone", CLONE_THREAD_FLAGS & ~CLONE_VM, 0, 0, 0, 0),
        "in a namespace": ("clone", CLONE_THREAD_FLAGS | CLONE_NEWUSER, 0, 0, 0, 0),
    }
    assert outcomes(folder, WORKER, calls) == {"thread": "EINVAL", "in a namespace": "SIGSYS"}


def test_what_is_in_force_already_need_not_be_set(folder: Path) -> None:
    """zmq sets the scheduling policy of each thread to the policy that it has, and aborts if the
    call fails."""
    calls = {  # pid 1, no parameters
        str(policy): ("sched_setscheduler", 1, policy, 0)
        for policy in (SCHED_OTHER, SCHED_FIFO, SCHED_IDLE, SCHED_IDLE | SCHED_RESET_ON_FORK)
    }
    expect(outcomes(folder, POOL, calls) | outcomes(folder, WORKER, calls), "ok")


def test_a_read_only_share_opens_nothing_for_writing(folder: Path) -> None:
    calls = {
        "read": ("openat", -1, b"x", os.O_RDONLY | os.O_CLOEXEC, 0),
        "update": ("openat", -1, b"x", os.O_RDWR, 0),
        "write": ("openat", -1, b"x", os.O_WRONLY, 0),
        "create": ("openat", -1, b"x", os.O_RDONLY | os.O_CREAT, 0),
        "truncate": ("openat", -1, b"x", os.O_RDONLY | os.O_TRUNC, 0),
    }
    expect(outcomes(folder, WORKER, calls), "EBADF")
    found = outcomes(folder, WORKER, calls, fs=FS | {"readonly": True})
    assert found == dict.fromkeys(calls, "SIGSYS") | {"read": "EBADF", "update": "EROFS"}


@pytest.mark.parametrize("action", ["log", "none"])
def test_log_and_none_let_it_pass(folder: Path, action: str) -> None:
    calls = named({"socket": (1, 1, 0), "kill": (1, 0)})
    expect(outcomes(folder, POOL, calls, seccomp=action), "ok")
    expect(outcomes(folder, WORKER, calls, seccomp=action), "ok")


def test_clone3_is_unknown_so_that_flags_can_be_seen(folder: Path) -> None:
    calls = named({"clone3": (0, 0)})
    expect(outcomes(folder, POOL, calls) | outcomes(folder, WORKER, calls), "ENOSYS")


def answer_enosys() -> None:
    """Make preadv2 and pwritev2 return ENOSYS, as a FUSE file system may for READ and WRITE; glibc
    then tries an older call."""
    seccomp_lib = ctypes.CDLL("libseccomp.so.2")
    seccomp_lib.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp_lib.seccomp_init(SCMP_ACT_ALLOW))
    for name in (b"preadv2", b"pwritev2"):
        number = seccomp_lib.seccomp_syscall_resolve_name(name)
        action = ctypes.c_uint32(SCMP_ACT_ERRNO | errno.ENOSYS)
        assert seccomp_lib.seccomp_rule_add(rules, action, number, 0) == 0
    assert seccomp_lib.seccomp_load(rules) == 0


def test_a_file_system_that_knows_no_call_ends_no_worker(folder: Path) -> None:
    def probe(sandbox: Sandbox) -> int:
        fd = os.open("/new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        pid = check(lib.clone_process())
        if pid == 0:
            seccomp.confine_worker(sandbox.worker_filter)
            room = bytearray(2)
            os.pwritev(fd, [b"ok"], 0)
            os.preadv(fd, [room], 0)
            os._exit(len(room) if room == b"ok" else 1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert run(folder, probe, prepare=answer_enosys) == len("ok")


def test_memory_files_and_children_still_work(folder: Path) -> None:
    def probe(_sandbox: Sandbox) -> str:
        with mmap.mmap(-1, 1 << 20) as memory:
            memory[:2] = b"ok"
            text = memory[:2].decode()
        pid = check(lib.clone_process())
        if pid == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        fd = os.open("/new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.write(fd, text.encode())
        os.setxattr("/new", "user.x", b"y")
        return os.pread(fd, 9, 0).decode() + os.getxattr("/new", "user.x").decode()

    assert run(folder, probe) == "oky"


OUTSIDE_THE_POOL: Final = {"guard", "broker"}


def test_every_row_has_a_reason_and_only_calls_with_rules_come_twice() -> None:
    rows = seccomp.table()
    assert all(row.why and row.callers and row.roles for row in rows)
    anything = [row for row in rows if not row.rule]
    confined = [row for row in anything if not set(row.roles) & OUTSIDE_THE_POOL]
    assert len({row.name for row in confined}) == len(confined)
    always = {row.name for row in confined if not row.conditions}
    assert not always & FORBIDDEN.keys()
    to_workers = {row.name for row in anything if set(row.roles) & {"loop", "threads"}}
    assert not to_workers & FORBIDDEN_TO_WORKERS.keys()
    assert {row.name for row in rows if row.rule} == {
        "openat", "fcntl", "ioctl", "mmap", "mprotect", "clone", "seccomp", "prctl", "prlimit64",
        "sched_setaffinity", "sched_setscheduler", "tgkill", "open_by_handle_at", "recvmsg",
        "sendmsg",
    }  # fmt: skip


def test_the_broker_has_few_calls_and_none_that_reads_or_writes_a_file() -> None:
    """No row of the broker is shared with a role in the pool, so a call that such a role gets is
    not also allowed to the broker."""
    rows = [row for row in seccomp.table() if set(row.roles) & OUTSIDE_THE_POOL]
    assert all(set(row.roles) <= OUTSIDE_THE_POOL for row in rows)
    of_broker = {row.name: row.rule for row in rows if "broker" in row.roles}
    assert {name for name, rule in of_broker.items() if not rule} == {
        "statx", "name_to_handle_at", "recvmsg", "sendmsg", "poll", "ppoll", "close",
        "restart_syscall", "exit_group",
    }  # fmt: skip
    assert of_broker["open_by_handle_at"] == "IS(2, O_PATH | O_NOFOLLOW | O_CLOEXEC)"
    assert of_broker["openat"] == "MASKED(2, OPEN_CHANGES, O_RDONLY)"
    guard = {row.name for row in rows if row.roles == ("guard",)}
    of_lifeline = {"pipe2", "read", "write", "close"}  # the guard has no fd that leads to a file
    assert guard == {"clone", "wait4", "clock_nanosleep", "seccomp", *of_lifeline}


def test_a_worker_talks_to_the_broker_by_its_own_socket_only(folder: Path) -> None:
    def probe(sandbox: Sandbox) -> list[int]:
        (own,) = sandbox.handles.sockets
        other = os.dup(own)
        codes = []
        for call, fd in itertools.product(("sendmsg", "recvmsg"), (own, other)):
            pid = check(lib.clone_process())
            if pid == 0:
                seccomp.confine_worker(sandbox.worker_filter, own)
                with contextlib.suppress(OSError):
                    syscall(call, fd, 0, 0)  # EFAULT
                os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return codes

    signed = FS | {"inode_file_handles": "signed"}
    assert run(folder, probe, fs=signed) == [0, -signal.SIGSYS, 0, -signal.SIGSYS]
