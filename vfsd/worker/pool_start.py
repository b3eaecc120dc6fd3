# SPDX-License-Identifier: Apache-2.0
"""`python -m vfsd.worker SOCKET JOB DIRECTORY`: become the template (template.py) of the pools that
do the job in the sealed memfd JOB and share DIRECTORY; the arguments are fds.

The launcher starts this program. A process that the template forks becomes the sandbox of a pool:
it closes the fds that are not those of the pool. An error before the pool is ready is sent to the
supervisor as one line ({"event": "failed"}), and the exit status is 1.
"""

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NoReturn

from vfsd.transport.control_messages import Content
from vfsd.transport.errors import describe
from vfsd.transport.fd_channel import FdChannel
from vfsd.transport.job import Job, JobError, JobFds, decode
from vfsd.transport.process_title import setproctitle
from vfsd.transport.shared_memory import read_blob
from vfsd.worker.holder import Holder
from vfsd.worker.inheritance import Inheritance
from vfsd.worker.isolation import isolate
from vfsd.worker.log_forward import LogForward
from vfsd.worker.pool_memory import PoolMemory
from vfsd.worker.restoration import restore
from vfsd.worker.sandbox import IsolationError
from vfsd.worker.tables import Tables
from vfsd.worker.template import serve


def main(arguments: list[str]) -> int:
    try:
        sock, blob, root = map(int, arguments[:3])  # a fourth one makes room for titles
        job = decode(read_blob(blob))
    except (ValueError, OSError, JobError) as error:
        sys.stderr.write(f"vfsd.worker: this is started by virtiofsd, with three fds: {error}\n")
        return 2
    os.close(blob)
    setproctitle(f"vfsd: {job.name} template")
    serve(socket.socket(fileno=sock), partial(_live, job, root))
    return 0


def _live(job: Job, root: int, passed: Sequence[int]) -> NoReturn:
    """Run as the first process of the pool that is given the fds `passed`."""
    status = 1
    try:
        fds = JobFds.of(root, passed, job.slots)
        os.dup2(fds.stderr, 2, inheritable=False)
        status = _start(replace(job, fds=fds))
    except BaseException as error:
        os.write(2, f"vfsd: pool: {describe(error)}\n".encode())
    finally:
        os._exit(status)


def _start(job: Job) -> int:
    channel = FdChannel.from_fd(job.fds.channel)
    try:
        inherited = _prepare(job, channel)
    except IsolationError as error:
        return _fail(channel, str(error))
    except Exception as error:  # the supervisor must get any error
        return _fail(channel, f"the pool cannot start: {describe(error)}")
    _report(inherited)
    Holder(inherited).run()
    return 0


def _prepare(job: Job, channel: FdChannel) -> Inheritance:
    setproctitle(f"vfsd: {job.name} holder")
    sandbox = isolate(job)
    tables = Tables.map(job)  # after isolate(): the broker of file handles must not have them
    tables.lay_out(job, sandbox)
    channel.socket.setblocking(False)
    if not sandbox.has_capset:
        job = _without_killpriv(job)
    if job.fds.former is not None:
        channel.send({"event": "prepared"})
    if job.fds.takes_over:
        sandbox.notes = restore(job, sandbox, tables)  # the first sandbox has logged the others
    return Inheritance(job, sandbox, tables, channel, PoolMemory())


def _report(inherited: Inheritance) -> None:
    """Report to the supervisor that the sandbox is ready, and what the operator should know."""

    def send(content: Content) -> bool:
        with suppress(OSError):  # the supervisor does not listen
            inherited.channel.send(content)
            return True
        return False

    sandbox = inherited.sandbox
    send({"event": "ready", "opens_handles": sandbox.handles.outcome.is_raw})
    log = LogForward(send, inherited.job.log_level)
    for note in sandbox.notes:
        log.warn(note)
    if not inherited.job.fds.takes_over:
        log.write("warn" if sandbox.handles.is_hazard else "info", sandbox.handles.line)


def _without_killpriv(job: Job) -> Job:
    """The job without killpriv_v2: the guest clears set-id bits by itself."""
    return replace(job, fs=replace(job.fs, killpriv_v2=False))


def _fail(channel: FdChannel, error: str) -> int:
    channel.send({"event": "failed", "error": error})
    return 1
