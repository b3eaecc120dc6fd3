# SPDX-License-Identifier: Apache-2.0
"""The last stages of isolation, which only take rights away; isolation.py explains their order."""

import os

from vfsd.transport.job import Job
from vfsd.transport.native import check, lib
from vfsd.worker import capabilities, fd_check, landlock, seccomp
from vfsd.worker.handles import Outcome
from vfsd.worker.sandbox import IsolationError, Sandbox, attempt

# Stage "landlock".


def enter_landlock(job: Job, sandbox: Sandbox) -> None:
    if not landlock.is_available():
        if job.sandbox == "chroot":
            raise IsolationError(
                "--sandbox=chroot needs Landlock (Linux 5.19, and `landlock` in the list of LSMs): "
                "without it, a worker that is taken over reaches the host through other processes; "
                "try --sandbox=namespace or --sandbox=none"
            )
        sandbox.notes.append(
            "this kernel has no Landlock, so with --sandbox=none a worker that is taken over "
            "can do all that its user may do"
        )
        return
    by_handles = job.sandbox == "chroot" or sandbox.handles.outcome is not Outcome.FDS
    kind = landlock.PROCESSES if by_handles else landlock.FILES
    attempt(
        "enter a Landlock domain",
        "try --sandbox=namespace",
        lambda: landlock.confine(kind, sandbox.root_fd, sandbox.proc_fd, job.fs.readonly),
    )


# Stage "fds".


def check_fds(_job: Job, sandbox: Sandbox) -> None:
    own = {sandbox.root_fd, sandbox.proc_fd, sandbox.oom_score.fd}
    for fd, what in fd_check.strangers(sandbox.proc_fd, own).items():
        raise IsolationError(
            f"fd {fd} refers to the file {what!r}, through which a worker could reach its "
            "file system; expected the shared directory, a socket, a pipe or a sealed memfd"
        )
    program = os.readlink("self/exe", dir_fd=sandbox.proc_fd)
    if sandbox.handles.outcome.is_raw and not program.startswith(fd_check.MEMFD):
        sandbox.notes.append(
            f"the interpreter {program!r} could not be executed from a memfd: as workers "
            "open file handles, a worker that is taken over can open every file of its file system"
        )


# Stages "capabilities" and "seccomp".


def limit_capabilities(job: Job, sandbox: Sandbox) -> None:
    try:
        wanted = capabilities.wanted(job, sandbox.handles.outcome)
        names = capabilities.modified(wanted, job.modcaps)
    except ValueError as error:
        raise IsolationError(f"--modcaps: {error}; see capabilities(7)") from None
    missing = _limit(names, job, sandbox)
    if missing - capabilities.KEPT.keys() - capabilities.FOR_HANDLES.keys():
        raise IsolationError(
            f"--modcaps: this process has not got {', '.join(sorted(missing))} itself; "
            "start it with that capability, or leave it out"
        )
    missing -= capabilities.FOR_HANDLES.keys()  # Tables.lay_out() checks those
    if missing >= wanted - capabilities.FOR_HANDLES.keys():
        sandbox.notes.append(
            "without privileges: every new file belongs to the user of this daemon"
        )
    elif missing:
        sandbox.notes.append(
            f"some operations will fail: the daemon lacks {', '.join(sorted(missing))}"
        )


def _limit(names: set[str], job: Job, sandbox: Sandbox) -> set[str]:
    """Keep only these capabilities; returns the names of those that this process does not have."""
    try:
        missing = capabilities.limit(names)
        check(lib.capabilities_keep())  # a worker that is not root still acts for the guest's root
    except OSError as error:
        if job.sandbox != "none":
            raise IsolationError(
                f"cannot give up capabilities: {error.strerror}; a seccomp filter that this is"
                " started under has to allow prctl(2) and capset(2), or try --sandbox=none"
            ) from None
        sandbox.has_capset = False
        sandbox.notes.append(
            f"workers keep all capabilities that the daemon was started with: {error.strerror};"
            " the guest has to clear the set-id bits of files itself"
        )
        return capabilities.missing(names)
    return missing


def _confine(job: Job, sandbox: Sandbox) -> None:
    conditions = seccomp.conditions(job, sandbox.handles.outcome)
    sandbox.worker_filter = seccomp.compile_worker(job.seccomp, conditions)
    seccomp.confine_pool(job.seccomp, conditions)


def filter_calls(job: Job, sandbox: Sandbox) -> None:
    check(lib.process_no_new_privs())
    if job.seccomp == "none":
        return
    attempt(
        "put the seccomp filter in force",
        "the kernel needs CONFIG_SECCOMP_FILTER; try --seccomp=none",
        lambda: _confine(job, sandbox),
    )
