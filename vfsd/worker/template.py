# SPDX-License-Identifier: Apache-2.0
"""The template: the process from which the first process of each pool is forked.

THEORY

Purpose. A pool needs an interpreter with all modules of a worker. Executing and importing them
takes most of the time of a start, and a VMM waits for a pool each time it connects. So the launcher
executes one process in advance, the template, which imports everything and then waits. For each
pool the template forks a process, which shares the imported modules with the template.

What it has. The job, which is the same for every pool, the fd of the shared directory, and the
launcher's full privileges, which the first process of a pool needs. The template reads packets from
the launcher alone: each of them has the fds of one pool and no content. The first fd is a pipe with
the key by which brokers sign handles. The template closes these fds as soon as it has forked; it
maps nothing of them, and does not read the key. So nothing of a guest ever reaches the template,
and nothing of one pool reaches the next pool.

Addresses. Pools of one template have the same addresses and the same seed of hashes; each of them
has a stack protector canary of its own (clone_process.c). A guest can learn addresses from crashes
of workers, and fault_budget.py counts these within one sandbox. So the supervisor has the launcher
execute another template after the first crash in a sandbox, and the next sandbox has other
addresses. A sandbox that is lost without a crash shows nothing about addresses.

Parents. The forked process is a child of the launcher, and not of the template: the template may be
replaced at any time. Its pidfd goes to the launcher with the answer.

Death. If the launcher dies, its socket closes and the template exits. If the template dies, the
launcher executes another template; a pool that has been forked is not affected.
"""

import gc
import os
import socket
from collections.abc import Callable, Sequence

from vfsd.transport.job import FORKED
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.passed_fds import ROOM, close_fds, decode_fds, encode_fds

Live = Callable[[Sequence[int]], None]  # runs in the forked process, with the fds of its pool


def serve(sock: socket.socket, live: Live) -> None:
    """Fork a process for each packet; returns when the launcher is gone."""
    gc.collect()
    gc.freeze()  # a collection in a pool would copy every page that has objects
    lib.process_forget_code()
    while True:
        data, ancillary, _, _ = sock.recvmsg(1, ROOM, socket.MSG_CMSG_CLOEXEC)
        fds = decode_fds(ancillary)
        if not data:
            return
        error, pidfd = _fork(live, fds)
        close_fds(fds)
        sock.sendmsg([FORKED.pack(error)], encode_fds(pidfd))
        close_fds(pidfd)


def _fork(live: Live, fds: Sequence[int]) -> tuple[int, Sequence[int]]:
    """Fork a process that runs `live`; returns 0 and its pidfd, or an errno and nothing."""

    def run() -> None:
        try:
            live(fds)
        finally:
            os._exit(1)

    pidfd = ffi.new("int32_t *")
    try:
        if check(lib.fork_sibling(pidfd)) == 0:
            lib.clone_process_run(ffi.cast("void *", id(run)))
    except OSError as error:
        return error.errno or 0, ()
    return 0, (pidfd[0],)
