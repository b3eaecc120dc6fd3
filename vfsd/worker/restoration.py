# SPDX-License-Identifier: Apache-2.0
"""The session of a sandbox that was lost goes on in this one (session_restore.c).

The tables of the lost sandbox may hold anything, and file systems are asked for many files, so a
process of its own does the work: with the filter of a worker, in the first worker's slot, before
there are workers. That process shares the holder's fd table, so the files that it opens stay open.
The holder gets a report of fixed size through a pipe, makes log lines of it, and believes no number
in it.

If the process dies, the sandbox does not start, and the supervisor builds another sandbox from the
same tables, which no process has changed.
"""

import os
from contextlib import suppress
from functools import partial
from typing import Any, Final, NoReturn

from vfsd.transport.errors import describe
from vfsd.transport.job import Job
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.process_title import setproctitle
from vfsd.transport.shared_memory import map_segment
from vfsd.worker import fs_config, seccomp
from vfsd.worker.sandbox import IsolationError, Sandbox
from vfsd.worker.tables import Tables

SLOT: Final = 0
REPORT_BYTES: Final = ffi.sizeof("struct restore_report")


def restore(job: Job, sandbox: Sandbox, tables: Tables) -> list[str]:
    """Fill the empty tables from those that the job names; returns lines for the log.

    Closes the fds of those tables. IsolationError if the session cannot be restored at all.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        pid = check(lib.clone_process())
        if pid == 0:
            callable_ = partial(_live, job, sandbox, tables, writer)
            lib.clone_process_run(ffi.cast("void *", id(callable_)))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        report = os.read(reader, REPORT_BYTES) if code == 0 else b""
    finally:
        for fd in (reader, writer, *job.fds.before):
            os.close(fd)
    tables.bury(SLOT)
    if len(report) != REPORT_BYTES:
        raise IsolationError(
            f"the guest's session cannot be restored: the process ended with {code}"
        )
    return describe_report(report)


def describe_report(data: bytes) -> list[str]:
    """The lines for a struct restore_report."""
    report: Any = ffi.new("struct restore_report *")
    ffi.buffer(report)[:] = data
    lost = report.lost[lib.LOSS_NODE] + report.lost[lib.LOSS_FILE]
    summary = (
        f"the guest's session goes on: {report.nodes} files are known again, {report.files} are"
        f" open again; {lost} are lost"
    )
    if report.lost[lib.LOSS_LOCK]:
        summary += f"; locks are lost on {report.lost[lib.LOSS_LOCK]} files"
    count = min(report.loss_count, lib.LOSSES_NAMED)
    return [summary] + [_line_of(loss) for loss in report.losses[0:count]]


def _line_of(loss: Any) -> str:
    device = f"{loss.device >> 20}:{loss.device & 0xFFFFF}"
    file = f"the file with inode {loss.ino} on device {device}"
    if loss.kind == lib.LOSS_LOCK:
        return f"lost for the guest: a lock on {file} cannot be taken again"
    what = "is not where the guest saw it last"
    if loss.kind == lib.LOSS_FILE:
        what = "cannot be opened again"
        if loss.error < 0:
            what += f" ({os.strerror(-loss.error)})"
    return f"lost for the guest: {file} {what}"


def _live(job: Job, sandbox: Sandbox, tables: Tables, writer: int) -> NoReturn:
    status = 1
    try:
        setproctitle(f"vfsd: {job.name} restoring")
        seccomp.confine_worker(sandbox.worker_filter, sandbox.handles.socket_of(SLOT))
        _restore(job, sandbox, tables, writer)
        status = 0
    except BaseException as error:
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(2, f"vfsd: restoring the session: {describe(error)}\n".encode())
    finally:
        os._exit(status)


def _restore(job: Job, sandbox: Sandbox, tables: Tables, writer: int) -> None:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    proc_self_fd = os.open("self/fd", flags, dir_fd=sandbox.proc_fd)
    config: Any = ffi.new("struct fs_config *")
    fs_config.fill(config, job, sandbox, tables, SLOT, proc_self_fd)
    report: Any = ffi.new("struct restore_report *")
    try:
        check(lib.session_restore(config, _map_before(job), report))
    finally:
        os.close(proc_self_fd)
    os.write(writer, bytes(ffi.buffer(report)))


def _map_before(job: Job) -> Any:
    """Map the tables of the lost sandbox, only to read them: a struct image_tables."""
    inodes, files, workers = job.fds.before
    ret: Any = ffi.new("struct image_tables *")
    ret.inode_capacity, ret.file_capacity = job.inode_capacity, job.file_capacity
    ret.inodes = map_segment(inodes, lib.inode_table_bytes(job.inode_capacity), writable=False)
    ret.files = map_segment(files, lib.file_table_bytes(job.file_capacity), writable=False)
    ret.workers = map_segment(workers, ffi.sizeof("struct worker_table"), writable=False)
    return ret
