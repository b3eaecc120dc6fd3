# SPDX-License-Identifier: Apache-2.0
"""Isolation: how the process that the launcher started becomes the holder of a sandbox.

THEORY

Purpose. An attacker who takes over a worker through a hostile guest should hold the shared
directory, the guest's own memory and nothing else: no other file, process, network or kernel
interface.

Actors. The template forks this process (template.py). The process runs STAGES in order, once,
before there is a guest: it has read no byte from a guest. Half-way it forks; the child continues
and becomes the holder, the parent exits, and the keeper becomes the holder's parent. Pools are
cloned from the holder afterwards, and workers from a pool; they inherit everything that was done
here.

Invariants. A stage may need rights that the next stage takes away, so the order is the design. A
stage that fails ends the process: nothing is served with less isolation than the operator asked
for. What the operator asked for is the job's `sandbox`: "namespace" (all of it), "chroot" (of the
namespaces only a mount namespace; Landlock keeps it from the host's processes; needs
CAP_SYS_ADMIN), "none" (the directory is only held by an fd: names from the guest are checked in C
all the same, and Landlock denies what it can, but a worker that is taken over reaches much of what
its user reaches; landlock.py says how much). Capabilities, no_new_privs and seccomp are in force in
every mode.

Not root. A user namespace in which only our own uid and gid exist, as 0, gives the right to make
the other namespaces. The guest's other users cannot own files then, unless the operator has been
given more ids (subuid(5)) and passes them with --uid-map and --gid-map (user_namespace.py).

Root with a user namespace (--userns). Every user exists in the namespace with the same id, so files
look the same as without the namespace. But a capability is effective only for objects that belong
to the namespace: for files by their owner, and for nothing else of the host. The kernel denies
MKNOD, handles, trusted.* and capabilities that an operator adds, whatever a worker does with them.

/proc. Ops reopen files by /proc/self/fd/N. Every worker opens its own /proc/self/fd through an fd
of a proc mount that is attached nowhere, so `..` of its root is itself. In a pid namespace of our
own that /proc shows only the sandbox. Without a pid namespace it would show the host's
processes, and /proc/PID/root of a process that a worker may trace is a way out: so the kernel is
asked to hide these processes (hidepid), and the Landlock domain forbids tracing them. /proc must be
mounted while the old root is still there: in a user namespace the kernel allows that mount only to
a process that already sees a whole /proc. With "none" the host's own /proc is used if the right to
mount /proc is missing.

File handles. A process that may open file handles can open every file of the share's file system:
an attacker can forge a handle to any of these files. The stage "handles" decides whether workers
may open handles, or whether a broker opens handles for them (handles.py). It runs when the share is
the root, and before any right is given up that the broker needs; the broker is forked there
(handle_broker.py). Later stages follow the decision: capability and system call are kept only if
workers open handles themselves.

fds. The last look at the fd table, before the filter, refuses every fd of a file except the shared
directory, /proc and the holder's OOM score (fd_check.py, oom_score.py). stderr is a pipe to the
supervisor (stderr_relay.py there), stdin and stdout are eventfds. Later fds come from the VMM,
through the supervisor, which looks at each of them (frontend_fds.py there).

Python. After the pivot every path leads into the share, where the guest can put a file named
/usr/lib/python3.11/foo.py. So the search for modules ends before that: a module that is not
imported by then can never be imported (last_import.py). Tracebacks are not printed with source
lines, for the same reason. Seccomp forbids executable mappings, so no library can be loaded either.

Dumpable. The processes stay dumpable: the seccomp filter, which has neither ptrace nor
process_vm_*, protects them from each other, and PR_SET_DUMPABLE 0 would keep the operator of an
unprivileged daemon from inspecting it.

What isolation does not do: limit memory or CPU (the service manager does, by cgroups), defend
against a kernel bug behind an allowed system call, or protect one worker from another: workers
share all files.
"""

import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from vfsd.transport.heritage import Namespaces, receive_namespaces
from vfsd.transport.job import Job
from vfsd.transport.native import check, lib
from vfsd.worker import handle_broker, restrictions, root_directory, user_namespace
from vfsd.worker.oom_score import OomScore
from vfsd.worker.sandbox import (
    CHROOT,
    CHROOT_HINT,
    IS_ROOT,
    NAMESPACE,
    NONE,
    IsolationError,
    Sandbox,
    attempt,
)

EVERY: Final = (NAMESPACE, CHROOT, NONE)
NAMESPACES: Final = (
    lib.NAMESPACE_MOUNT
    | lib.NAMESPACE_PID
    | lib.NAMESPACE_NET
    | lib.NAMESPACE_IPC
    | lib.NAMESPACE_UTS
)


# Stage "process".


def _close_other_fds(job: Job) -> None:
    keep = {2, *job.fds.kept(), *job.fds.consumed()}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - pathlib would stay in each worker
        fd = int(name)
        if fd in keep:
            os.set_inheritable(fd, False)
            keep.remove(fd)
        else:
            _close_if_open(fd)  # listdir() has already closed its own fd
    if keep - {2}:
        raise IsolationError(f"job: fd {min(keep - {2})} is not open")
    # Not /dev/null, which is a file of the host's devtmpfs.
    for standard in (0, 1):
        nothing = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        if nothing != standard:
            os.dup2(nothing, standard, inheritable=False)
            os.close(nothing)


def _close_if_open(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass


def _limit_locked_memory() -> None:
    """Set RLIMIT_MEMLOCK to 0, as mmap(2) could also lock memory. RLIMIT_NPROC is not changed: the
    kernel does not apply it to root, and another user's limit counts all processes of that user;
    the service manager is the place to limit tasks (TasksMax=, pids.max)."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))


def _limit_core(job: Job) -> None:
    """Set RLIMIT_CORE to 0. A core file contains what the guest reads and writes, and core_pattern
    may put the core file into the share. With --seccomp=trap the operator asks for core files."""
    if job.seccomp != "trap":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _enter_shared_dir(job: Job) -> None:
    """Enter the shared directory by the fd that was opened at the start, wherever the directory is
    by now.

    The shared directory is `.` from here on, until it becomes the root. In a new mount namespace
    the kernel moves the working directory to the new mounts, while an fd would still refer to a
    mount of the old namespace.
    """
    hint = "give a directory that this user may enter"
    attempt(f"enter {job.shared_dir!r}", hint, lambda: os.fchdir(job.fds.root))
    os.close(job.fds.root)


def _process(job: Job, sandbox: Sandbox) -> None:
    _close_other_fds(job)
    if job.fds.former is not None:
        what = "get the namespaces of the sandbox that serves now"
        attempt(what, "upgrade again", partial(_meet_former, job.fds.former, sandbox))
    _enter_shared_dir(job)
    _limit_core(job)
    _limit_locked_memory()
    _let_supervisor_send_signals(job)
    os.umask(0)
    os.environ.clear()
    os.environ["TZ"] = "UTC0"  # so that glibc never reads /etc/localtime, later the guest's
    time.tzset()
    if os.geteuid() == 0 and os.getgroups():
        attempt(
            "give up the supplementary groups",
            "start it with none, or with CAP_SETGID",
            lambda: os.setgroups([]),
        )


def _meet_former(sock: int, sandbox: Sandbox) -> None:
    sandbox.former = receive_namespaces(sock)


def _let_supervisor_send_signals(job: Job) -> None:
    """Set our saved user id to the supervisor's user id: kill(2) then permits the supervisor to
    send signals. Nothing else here depends on the saved user id."""
    with suppress(PermissionError):  # without CAP_SETUID the supervisor has also stayed root
        os.setresuid(-1, -1, job.supervisor)


# Stage "namespaces".


def _become_root_of_user_namespace(job: Job) -> None:
    hint = (
        "allow them (sysctl user.max_user_namespaces), "
        f"run {'' if IS_ROOT else 'as root '}without --userns, or try --sandbox=none"
    )
    with user_namespace.Mapper(job) as mapper:
        if os.geteuid() == 0:
            # The kernel lets a user namespace mount /proc only if the process sees a /proc that is
            # not covered in part. If this call fails and the old /proc is covered in part, stage
            # "root" reports it.
            lib.process_see_whole_proc()
        attempt(
            "create a user namespace", hint, lambda: check(lib.isolate_unshare(lib.NAMESPACE_USER))
        )
        for what, step in mapper.steps():
            attempt(what, "see --uid-map and --gid-map; or try --sandbox=none", step)


def _join_user_namespace(former: Namespaces) -> None:
    attempt(
        "enter the user namespace of the sandbox that serves now",
        "restart the daemon",
        lambda: check(lib.isolate_join(former.user, lib.NAMESPACE_USER)),
    )
    attempt("become root there", "restart the daemon", user_namespace.become_root)


def _namespaces(job: Job, sandbox: Sandbox) -> None:
    if job.sandbox == CHROOT:
        attempt(
            f"chroot to {job.shared_dir!r} in a mount namespace",
            CHROOT_HINT,
            lambda: check(lib.isolate_unshare(lib.NAMESPACE_MOUNT)),
        )
        return
    if os.geteuid() != 0 or job.userns or job.uid_map or job.gid_map:
        if sandbox.former:
            _join_user_namespace(sandbox.former)
        else:
            _become_root_of_user_namespace(job)
    attempt(
        "create namespaces",
        "run with CAP_SYS_ADMIN, or try --sandbox=none",
        lambda: check(lib.isolate_unshare(NAMESPACES)),
    )


# Stage "fork".


def _fork(job: Job, _sandbox: Sandbox) -> None:
    """Continue in a child, the first process of the new pid namespace; the parent exits."""
    pid = attempt("fork", "the limit of processes (ulimit -u, pids.max) may be too low", os.fork)
    if pid:
        os._exit(0)
    if job.sandbox != NAMESPACE:
        check(lib.process_become_subreaper())


# Stage "score".


def _score(_job: Job, sandbox: Sandbox) -> None:
    try:
        sandbox.oom_score = OomScore.open()
    except OSError as error:
        why = f"oom_score_adj of the holder cannot be changed: {error.strerror}"
        sandbox.notes.append(f"when memory is short, the share may end instead of a worker: {why}")


@dataclass(frozen=True)
class Stage:
    """One step of isolation: what the step should and must not do, and in which sandbox modes it
    runs."""

    name: str
    should: str
    mustnt: str
    modes: tuple[str, ...]
    run: Callable[[Job, Sandbox], None]


STAGES: Final = (
    Stage(
        "process",
        "only the job's fds and stderr, in the shared directory, no groups, no environment, "
        "umask 0, no core files, no locked memory; the supervisor may send signals",
        "look up the path of the shared directory: its owner may have changed what it leads to",
        EVERY,
        _process,
    ),
    Stage(
        "namespaces",
        "own mount, pid, network, ipc and uts namespace; a user namespace if not root or asked "
        "for; with `chroot` a mount namespace alone",
        "need a capability that the process has only in the old user namespace",
        (NAMESPACE, CHROOT),
        _namespaces,
    ),
    Stage(
        "fork",
        "be pid 1 of the pid namespace, or else a child subreaper; be the launcher's child, not a "
        "launcher's",
        "leave the parent behind",
        EVERY,
        _fork,
    ),
    Stage(
        "score",
        "hold an fd of the holder's own oom_score_adj, so that its pools get a higher score",
        "change the score of the holder itself, or of the broker",
        EVERY,
        _score,
    ),
    Stage(
        "root",
        "the shared directory is /, nodev and nosuid; the old root is gone, no module is found",
        "lose /proc/self/fd, mounts that the host makes in the share later, or ACCESS of X_OK",
        EVERY,
        root_directory.enter,
    ),
    Stage(
        "handles",
        "decide how inodes are held; start the broker if a broker opens handles",
        "give the broker anything but the shared directory and its sockets",
        EVERY,
        handle_broker.prepare,
    ),
    Stage(
        "landlock",
        "no process outside can be traced or signalled; with `none`, no file outside can be opened",
        "be entered after a worker was created, or stop the guest's renames",
        (CHROOT, NONE),
        restrictions.enter_landlock,
    ),
    Stage(
        "fds",
        "no fd of a file or directory except the shared directory, /proc and the OOM score",
        "be followed by a stage that opens an fd and keeps it",
        EVERY,
        restrictions.check_fds,
    ),
    Stage(
        "capabilities",
        "exactly the table (capabilities.py) as the job modifies it, bounding set empty",
        "keep SETPCAP",
        EVERY,
        restrictions.limit_capabilities,
    ),
    Stage(
        "seccomp",
        "no_new_privs; the table of system calls (syscalls.h); a worker adds its own part",
        "be followed by a stage that opens a namespace, mounts or execs",
        EVERY,
        restrictions.filter_calls,
    ),
)


def isolate(job: Job) -> Sandbox:
    """Run the stages; returns in the process that is the holder from now on."""
    sandbox = Sandbox()
    for stage in STAGES:
        if job.sandbox in stage.modes:
            stage.run(job, sandbox)
    return sandbox
