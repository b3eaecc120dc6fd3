# SPDX-License-Identifier: Apache-2.0
"""The privileges that keeper and supervisor give up before they read any input.

THEORY

Purpose. The supervisor reads what a VMM and what the sandbox send. An attacker who finds an error
in that code should get neither the host nor the share of another VM. So everything that needs
privilege is done before the first byte is read (the VMM's socket and its group, limits, the runtime
folder), or is done by the launcher, which reads nothing (launcher.py).

Before the launcher is forked, own_id() chooses the id that the supervisor will have. Then, in the
keeper, before it creates the first supervisor:
  0. root only, where /proc hides processes: mount a /proc that shows all processes, in a mount
     namespace of its own;
  1. change the working directory to the runtime folder, where the sockets of the workers are. From
     here on the sockets are named without a folder, so this user needs no access to the folders
     above the runtime folder;
  2. root only: change all ids to one id that no other process has (OWN_IDS). Root's rights over its
     own files, over processes of root, and with programs that ask who connects to them (D-Bus,
     systemd) are gone with that. The id is not that of the user nobody: other daemons run as nobody
     as well, and could connect to the workers, or put another folder in the place of the runtime
     folder. An instance has the same id at each start, unless another process has that id then.
     Pool and workers have the id as their saved user id (isolation.py), so keeper and supervisor
     may send them signals;
  3. empty every capability set, set no_new_privs, and turn off core dumps;
  4. Landlock, where the kernel has it: files can be read below /proc only. In the runtime folder
     sockets can be made and files removed, and nothing else can be changed anywhere. TCP and
     abstract sockets of other processes are out of reach;
  5. the filter (CALLS), and a limit for the number of processes that have the id (PROCESSES). The
     supervisor may create a process that shares its fd table, because it creates the next keeper
     (keeper_watch.py); what it creates is confined as it is itself.

Invariants. Nothing that is done later may need a privilege that is gone: every module has been
imported, every file opened. Keeper and supervisor create each other, and a filter is inherited, so
both have the same filter. A call that the filter denies ends the process, as in a worker; the
operator's --seccomp applies to both.

What this does not do. A daemon that is started by an ordinary user has that user's rights to
connect to sockets by path, because Landlock before version 9 cannot deny that. The daemon also has
the right to send signals to the user's processes: Landlock cannot limit signals, because the pool
is outside the Landlock domain. Keeper and supervisor share an fd table, and with it the memory of
the guest.
"""

import binascii
import errno
import os
import resource
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from vfsd.supervisor.log_collector import Say
from vfsd.supervisor.options import Options
from vfsd.transport.errors import OperatorError
from vfsd.transport.native import check, ffi, lib

# Ids that no user, service or container has, by systemd's list UIDS-GIDS. If the user namespace
# does not map these ids, the id of the user nobody is taken.
OWN_IDS: Final = range(0x70000000, 0x7FFE0000)
NOBODY: Final = 65534
# Keeper and supervisor, and those that died and were not reaped yet: a supervisor that was taken
# over cannot fill the host with processes.
PROCESSES: Final = 256
ACTIONS: Final = {"kill": lib.SECCOMP_KILL, "trap": lib.SECCOMP_TRAP, "log": lib.SECCOMP_LOG}
_TO_LEAVE_ROOT: Final = sum(1 << lib.capability_number(c) for c in (b"SETUID", b"SETGID"))
_ALL: Final = (1 << 64) - 1
_WORD: Final = (1 << 32) - 1
_WRITING: Final = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_CLONE_FILES: Final = 0x400
_PROT_EXEC: Final = 4
_AF_UNIX: Final = 1
_FIONBIO, _FIOCLEX, _TCGETS = 0x5421, 0x5451, 0x5401
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


class Call(NamedTuple):
    """One allowed system call, and its caller: a file of this program and the function that the
    file calls, or a library. With `argument`: only if (that argument & mask) == value."""

    name: str
    caller: str
    argument: int = -1
    mask: int = 0
    value: int = 0


CALLS: Final = (
    # Files. Only files below /proc can be opened.
    Call("openat", "descendants.py: read_text", 2, _WRITING, 0),
    Call("read", "CPython: files; stderr_relay.py: os.read"),
    Call("write", "log_collector.py: os.write"),
    Call("lseek", "resume.py: os.lseek"),
    Call("pread64", "resume.py: os.pread"),
    Call("pwrite64", "resume.py: os.pwrite"),
    Call("sendfile", "resume.py: os.sendfile"),
    Call("statx", "shared_memory.c: statx"),
    Call("newfstatat", "CPython: files; listener.py: os.fstat"),
    Call("fstat", "CPython: files, on glibc before 2.33"),
    Call("getdents64", "resume.py: iterdir"),
    Call("readlink", "frontend_fds.py: readlink"),
    Call("unlink", "pool_client.py: unlink"),
    Call("memfd_create", "shared_memory.py: os.memfd_create"),
    Call("ftruncate", "shared_memory.py: os.ftruncate"),
    Call("fcntl", "shared_memory.py: fcntl.fcntl; CPython: sockets"),
    Call("ioctl", "CPython: socket.setblocking", 1, _WORD, _FIONBIO),
    Call("ioctl", "CPython: os.set_inheritable", 1, _WORD, _FIOCLEX),
    Call("ioctl", "CPython: isatty of what is opened", 1, _WORD, _TCGETS),
    Call("close", "resume.py: os.close"),
    Call("pipe2", "stderr_relay.py: os.pipe2"),
    Call("dup2", "background.py: os.dup2"),
    Call("dup3", "background.py: os.dup2"),
    # Calls that wait.
    Call("epoll_create1", "worker_link.py: select.epoll"),
    Call("epoll_ctl", "worker_link.py: register"),
    Call("poll", "event_loop.py: selectors; log_collector.py: select.poll"),
    Call("ppoll", "event_loop.py: selectors, on architectures without poll"),
    Call("rt_sigtimedwait", "keeper.py: signal.sigtimedwait"),
    Call("clock_nanosleep", "pool_client.py: time.sleep"),
    Call("restart_syscall", "Linux: goes on with a waiting call after SIGSTOP"),
    # Sockets.
    Call("socket", "worker_socket.py: socket.socket", 0, _WORD, _AF_UNIX),
    Call("socketpair", "fd_channel.py: socket.socketpair", 0, _WORD, _AF_UNIX),
    Call("bind", "worker_socket.py: bind"),
    Call("listen", "worker_socket.py: listen"),
    Call("connect", "worker_link.py: connect"),
    Call("accept", "CPython: socket.accept, on kernels without accept4"),
    Call("accept4", "service.py: accept"),
    Call("getsockname", "CPython: socket.socket of an fd"),
    Call("getpeername", "listener.py: getpeername"),
    Call("getsockopt", "CPython: socket.socket of an fd"),
    Call("setsockopt", "fd_channel.py: setsockopt"),
    Call("sendmsg", "fd_channel.py: sendmsg"),
    Call("recvmsg", "fd_channel.py: recvmsg"),
    Call("sendto", "log_collector.py: sendto; worker_link.py: send"),
    Call("recvfrom", "message_socket.py: recv; worker_link.py: recv"),
    # Memory.
    Call("brk", "glibc: malloc"),
    Call("mmap", "glibc: malloc; CPython: arenas", 2, _PROT_EXEC, 0),
    Call("mprotect", "glibc: malloc, stacks", 2, _PROT_EXEC, 0),
    Call("munmap", "glibc: malloc; CPython: arenas"),
    Call("mremap", "glibc: malloc"),
    Call("madvise", "process.c: madvise; glibc: stacks"),
    # Processes and threads.
    Call("set_tid_address", "glibc: a new process"),
    Call("sched_getaffinity", "glibc: how many arenas malloc may have"),
    Call("futex", "glibc: locks; CPython: the interpreter's lock"),
    Call("prctl", "glibc: names of threads; keeper.py: setproctitle", 0, _WORD, _PR_SET_NAME),
    Call("getpid", "log_collector.py: os.getpid"),
    Call("gettid", "glibc: abort"),
    Call("clone", "clones.py: clone_process", 0, _ALL, _CLONE_FILES | signal.SIGCHLD),
    Call("clone", "clones.py: clone_apart", 0, _ALL, signal.SIGCHLD),
    Call("prctl", "process.c: process_watch_parent", 0, _WORD, _PR_SET_PDEATHSIG),
    Call("wait4", "keeper.py: os.waitpid; keeper_watch.py: os.waitpid"),
    Call("kill", "keeper.py: os.kill"),
    Call("getppid", "keeper.py: os.getppid; keeper_watch.py: os.getppid"),
    Call("kcmp", "process.c: SYS_kcmp"),
    Call("pidfd_open", "pool_client.py: os.pidfd_open"),
    Call("pidfd_send_signal", "descendants.py: signal.pidfd_send_signal"),
    Call("tgkill", "glibc: abort"),
    Call("rt_sigaction", "event_loop.py: signal.signal"),
    Call("rt_sigprocmask", "event_loop.py: signal.pthread_sigmask"),
    Call("rt_sigreturn", "Linux: the end of a signal handler"),
    Call("exit", "glibc: a thread's end"),
    Call("exit_group", "keeper.py: os._exit"),
    # Time and random numbers, where the vDSO does not provide them.
    Call("clock_gettime", "CPython: time.monotonic"),
    Call("clock_getres", "CPython: time"),
    Call("time", "glibc: time"),
    Call("getrandom", "pool_client.py: os.urandom; CPython: hashing"),
)


def own_id(runtime_dir: str, key: bytes, inherited: int | None = None) -> int:
    """Choose the user and group id of keeper and supervisor, and give them `runtime_dir`.
    `inherited`: the id that they had in the daemon whose place this one takes.

    If root starts the daemon: one of OWN_IDS, or the id of nobody if the user namespace has none of
    them. Otherwise, and if root may not change ids or owners: the present user id.
    """
    if os.geteuid() != 0 or _TO_LEAVE_ROOT & ~_permitted():
        return os.geteuid()
    for own in (_free_id(key) if inherited is None else inherited, NOBODY):
        with suppress(OSError):
            os.chown(runtime_dir, own, own, follow_symlinks=False)
            return own
    return 0


def _free_id(key: bytes) -> int:
    """One of OWN_IDS that no process has. The same `key` gets the same id if that id is free:
    journald keeps a file for each user id."""
    first = binascii.crc32(key) % len(OWN_IDS)
    while _is_taken(OWN_IDS[first]):
        first = (first + 1) % len(OWN_IDS)
    return OWN_IDS[first]


def _is_taken(own: int) -> bool:
    """Does a process have this user id? getpriority(2) compares the real user id, and the own id of
    a supervisor is its real user id."""
    try:
        os.getpriority(os.PRIO_USER, own)
    except OSError:
        return False
    return True


def confine(runtime_dir: str, own: int, options: Options, say: Say) -> None:
    """Confine this process, the keeper, and all processes that it creates; OperatorError if it
    cannot be confined.

    `own`: what own_id() returned. If the kernel lacks a feature (Landlock), a warning is logged and
    the daemon runs without that feature.
    """
    if os.geteuid() == 0 and _hides_processes(Path("/proc/self/mountinfo").read_text()):
        _show_processes(say)
    rules = _landlock_rules(runtime_dir, say)
    os.chdir(runtime_dir)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        try:
            _leave_root(own)
        except OSError as error:
            why = f"keeper and supervisor stay root, without capabilities: {error.strerror}"
            say("warn", why)
    _give_up_capabilities(options.sandbox, say)
    check(lib.process_no_new_privs())
    if rules is not None:
        check(lib.landlock_enforce(rules))
        os.close(rules)
    _filter(options.seccomp, CALLS)


def _give_up_capabilities(sandbox: str, say: Say) -> None:
    """Empty every capability set. OperatorError if that is denied, as by the seccomp filter of a
    container; with --sandbox=none it is only a warning."""
    error = lib.capabilities_limit(0)
    if not error:
        return
    text = f"keeper and supervisor cannot give up their capabilities: {os.strerror(-error)}"
    if sandbox != "none":
        raise OperatorError(
            f"{text}; the seccomp filter that virtiofsd is started under must allow prctl(2) and"
            " capset(2); or try --sandbox=none"
        )
    say("warn", text)


def _hides_processes(mounts: str) -> bool:
    """Does the topmost /proc hide processes of other users (hidepid=, ProtectProc=)?"""
    rows = [line.split() for line in mounts.splitlines()]
    options = [row[-1].split(",") for row in rows if row[4] == "/proc"]
    return any(option.startswith("hidepid=") for option in options[-1])


def _show_processes(say: Say) -> None:
    """Mount a /proc that shows the processes of the sandbox. They belong to root, and must be seen:
    a process that hangs in a file system is waited for, and the processes that are left at the end
    are killed."""
    error = lib.process_see_whole_proc()
    if error:
        say("warn", f"/proc hides the processes of the sandbox: {os.strerror(-error)}; a worker"
            " that hangs is not waited for")  # fmt: skip


def _landlock_rules(runtime_dir: str, say: Say) -> int | None:
    rules = lib.landlock_create()
    if rules < 0:
        say("warn", f"Landlock is not available ({os.strerror(-rules)}): only their user id keeps"
            " keeper and supervisor from files")  # fmt: skip
        return None
    _allow(rules, "/proc", lib.LANDLOCK_READ_FILE | lib.LANDLOCK_READ_DIR)
    _allow(rules, runtime_dir, lib.LANDLOCK_MAKE_SOCK | lib.LANDLOCK_REMOVE_FILE)
    return rules


def _allow(rules: int, path: str, access: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        check(lib.landlock_allow(rules, fd, access))
    finally:
        os.close(fd)


def _permitted() -> int:
    """The permitted capabilities of this process, as a mask."""
    ret = ffi.new("uint64_t *")
    check(lib.capabilities_permitted(ret))
    return int(ret[0])


def _leave_root(own: int) -> None:
    """Change all ids to `own`; OSError if root may not change ids here."""
    if own == 0:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    os.setgroups([])
    # The bounding set can be limited only as root. If this fails, _give_up_capabilities() fails as
    # well, and reports the error.
    lib.capabilities_limit(_TO_LEAVE_ROOT)
    os.setresgid(own, own, own)
    os.setresuid(own, own, own)
    if own in OWN_IDS:  # no other process has this id
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))


def _filter(seccomp: str, calls: Sequence[Call]) -> None:
    if seccomp == "none":
        return
    rules: Any = ffi.new("struct syscall_rule[]", len(calls))
    names = [ffi.new("char[]", call.name.encode()) for call in calls]  # `rules` points to these
    for rule, name, call in zip(rules, names, calls, strict=True):
        rule.name, rule.argument, rule.mask, rule.value = name, *call[2:]
    refused = ffi.new("int32_t *")
    error = lib.syscall_filter_load(ACTIONS[seccomp], rules, len(calls), refused)
    if error:
        where = f" at {calls[refused[0]].name}" if refused[0] >= 0 else ""
        raise OperatorError(
            f"cannot put a seccomp filter in force{where}: {os.strerror(-error)};"
            " the kernel needs CONFIG_SECCOMP_FILTER; try --seccomp=none"
        )
