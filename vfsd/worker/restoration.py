# SPDX-License-Identifier: Apache-2.0
"""The session of another sandbox goes on in this one (session_restore.c).

That sandbox was lost, and its tables are given; or it has stopped serving in favour of this one,
and its fds and a session image come from its pool (heritage.py).

Tables and image may hold anything, and file systems are asked for many files, so a
process of its own does the work: with the filter of a worker, in the first worker's slot, before
there are workers. That process shares the holder's fd table, so the files that it opens stay open.
The holder gets a report of fixed size through a pipe, makes log lines of it, and believes no number
in it.

If the process dies, the sandbox does not start, and the supervisor builds another sandbox from the
same tables, which no process has changed.
"""

import errno
import os
import resource
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NoReturn

from vfsd.transport.errors import describe
from vfsd.transport.heritage import Image, receive_files
from vfsd.transport.job import Job
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.process_title import setproctitle
from vfsd.transport.shared_memory import map_segment
from vfsd.worker import fs_config, seccomp
from vfsd.worker.sandbox import IsolationError, Sandbox
from vfsd.worker.tables import Tables

SLOT: Final = 0
REPORT_BYTES: Final = ffi.sizeof("struct restore_report")


Restore = Callable[[Any, Any], int]  # takes a struct fs_config and a struct restore_report


def restore(job: Job, sandbox: Sandbox, tables: Tables) -> list[str]:
    """Fill the empty tables from those that the job names, or from what the former sandbox sends;
    returns lines for the log.

    Closes the fds that the job has for this. IsolationError if the session cannot be restored at
    all.
    """
    if job.fds.former is not None:
        return _take_over(job.fds.former, job, sandbox, tables)
    try:
        return _restore_by(partial(_from_tables, job), job, sandbox, tables)
    finally:
        close_fds(job.fds.before)


def _take_over(former: int, job: Job, sandbox: Sandbox, tables: Tables) -> list[str]:
    """Wait until the former sandbox has stopped, and go on with its session. Nothing may be taken
    from its tables before: they change."""
    files, image = receive_files(former)
    try:
        return _restore_by(partial(_from_image, files, image), job, sandbox, tables)
    finally:
        close_fds([image.fd, former])


def _restore_by(call: Restore, job: Job, sandbox: Sandbox, tables: Tables) -> list[str]:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        pid = check(lib.clone_process())
        if pid == 0:
            callable_ = partial(_live, call, job, sandbox, tables, writer)
            lib.clone_process_run(ffi.cast("void *", id(callable_)))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        report = os.read(reader, REPORT_BYTES) if code == 0 else b""
    finally:
        close_fds([reader, writer])
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


def _live(call: Restore, job: Job, sandbox: Sandbox, tables: Tables, writer: int) -> NoReturn:
    status = 1
    try:
        setproctitle(f"vfsd: {job.name} restoring")
        seccomp.confine_worker(sandbox.worker_filter, sandbox.handles.socket_of(SLOT))
        _restore(call, job, sandbox, tables, writer)
        status = 0
    except BaseException as error:
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(2, f"vfsd: restoring the session: {describe(error)}\n".encode())
    finally:
        os._exit(status)


def _restore(call: Restore, job: Job, sandbox: Sandbox, tables: Tables, writer: int) -> None:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    proc_self_fd = os.open("self/fd", flags, dir_fd=sandbox.proc_fd)
    config: Any = ffi.new("struct fs_config *")
    fs_config.fill(config, job, sandbox, tables, SLOT, proc_self_fd)
    report: Any = ffi.new("struct restore_report *")
    try:
        check(call(config, report))
    finally:
        os.close(proc_self_fd)
    os.write(writer, bytes(ffi.buffer(report)))


def _from_tables(job: Job, config: Any, report: Any) -> int:
    """From the tables of a lost sandbox, mapped only to read them."""
    inodes, files, workers = job.fds.before
    ret: Any = ffi.new("struct image_tables *")
    ret.inode_capacity, ret.file_capacity = job.inode_capacity, job.file_capacity
    ret.inodes = map_segment(inodes, lib.inode_table_bytes(job.inode_capacity), writable=False)
    ret.files = map_segment(files, lib.file_table_bytes(job.file_capacity), writable=False)
    ret.workers = map_segment(workers, ffi.sizeof("struct worker_table"), writable=False)
    return int(lib.session_restore(config, ret, report))


def _from_image(files: Mapping[int, int], image: Image, config: Any, report: Any) -> int:
    """From what the former sandbox has sent. No number of an fd is larger than the limit of open
    files, or the sandbox has been taken over."""
    end = max(files, default=-1) + 1
    if end > resource.getrlimit(resource.RLIMIT_NOFILE)[1] or min(files, default=0) < 0:
        return -errno.EINVAL
    kept: Any = ffi.new("int32_t[]", end)
    ffi.memmove(kept, array("i", (files.get(number, -1) for number in range(end))), 4 * end)
    source: Any = ffi.new("struct restore_source *")
    source.image = map_segment(image.fd, image.size, writable=False)
    source.bytes, source.kept, source.kept_count = image.size, kept, end
    return int(lib.session_take_over(config, source, report))
