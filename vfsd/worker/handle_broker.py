# SPDX-License-Identifier: Apache-2.0
"""Stage "handles" of isolation: decide how inodes are held, and start the broker if one is needed.

The broker, its guard and the guard's deputy (handle_guard.c) are descendants of the holder, with an
fd table of their own. They branch off here, so they have nothing that the holder gets later:
neither the shared tables nor the guest's memory.
"""

import os
import signal
import socket
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, NoReturn

from vfsd.transport.ending_signals import ENDING
from vfsd.transport.fd_table import close_all_but
from vfsd.transport.job import Job
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.process_title import setproctitle
from vfsd.worker import capabilities, handles, seccomp
from vfsd.worker.handles import Handles, NoHandlesError, Outcome, Reach
from vfsd.worker.sandbox import IsolationError, Sandbox, attempt

KEPT: Final = frozenset({"DAC_READ_SEARCH"})
REQUEST_ROOM: Final = 1  # bytes: the least that the kernel allows
ANSWER_ROOM: Final = 16384  # bytes; an answer has up to 5.4 KiB
_READABLE: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC


def prepare(job: Job, sandbox: Sandbox) -> None:
    """The stage. It must come before the stages that take away the right to open handles."""
    try:
        sandbox.handles = handles.decide(job, _reach(sandbox), _can_open(job, sandbox))
    except NoHandlesError as error:
        raise IsolationError(str(error)) from None
    if sandbox.handles.outcome is Outcome.SIGNED:
        sandbox.handles = _start(job, sandbox)
    os.close(job.fds.key)  # unread: only the guard may have the key


def _reach(sandbox: Sandbox) -> Reach:
    number = ffi.new("uint64_t *")
    is_root = bool(check(lib.isolate_mount_of(sandbox.root_fd, number)))
    return handles.reach(sandbox.mountinfo(), number[0], is_root)


def _can_open(job: Job, sandbox: Sandbox) -> bool:
    """Can a process that has only CAP_DAC_READ_SEARCH open handles? A child process tries.

    --modcaps may have removed the capability.
    """
    with suppress(ValueError):  # stage "capabilities" reports it
        if not handles.may_use(job) or not capabilities.modified(set(KEPT), job.modcaps) & KEPT:
            return False
    pid = attempt("fork", "the limit of processes (ulimit -u, pids.max) may be too low", os.fork)
    if pid == 0:
        _try_to_open(sandbox.root_fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _try_to_open(root_fd: int) -> NoReturn:
    status = 1
    with suppress(BaseException):
        if not capabilities.limit(set(KEPT)):
            root = os.open(".", _READABLE, dir_fd=root_fd)
            status = 0 if lib.handle_guard_can_open(root) else 1
    os._exit(status)


def _start(job: Job, sandbox: Sandbox) -> Handles:
    hint = "try --inode-file-handles=never"
    pairs = [_pair() for _ in range(job.slots)]
    pid = attempt("start the broker of file handles", hint, os.fork)
    if pid == 0:
        _be_guard(job, sandbox.root_fd, [theirs.fileno() for _, theirs in pairs])
    for _, theirs in pairs:
        theirs.close()
    return replace(sandbox.handles, sockets=tuple(ours.detach() for ours, _ in pairs))


def _pair() -> tuple[socket.socket, socket.socket]:
    """A worker's end and the broker's end. The small buffers bound the number of requests that
    wait, and of their fds; an answer is larger than a request."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUEST_ROOM)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ANSWER_ROOM)
    return ours, theirs


def _be_guard(job: Job, root_fd: int, sockets: list[int]) -> NoReturn:
    try:
        setproctitle(f"vfsd: {job.name} handles")
        root = os.open(".", _READABLE, dir_fd=root_fd)
        close_all_but({root, job.fds.key, *sockets})
        for ignored in ENDING:
            signal.signal(ignored, signal.SIG_IGN)
        if not capabilities.limit(set(KEPT)):
            check(lib.isolate_hide_memory())
            check(lib.process_no_new_privs())
            guard: Any = ffi.new("struct handle_guard *")
            fds = ffi.new("int32_t[]", sockets)  # kept alive by this frame, which never returns
            guard.root_fd, guard.socket_count, guard.sockets = root, len(sockets), fds
            guard.key_fd = job.fds.key
            guard.action = seccomp.ACTIONS.get(job.seccomp, -1)
            lib.handle_guard_run(guard)
    finally:  # a worker that asks then finds that the broker is gone
        os._exit(1)
