# SPDX-License-Identifier: Apache-2.0
"""The limit of open files (RLIMIT_NOFILE): the keeper sets it once for all processes of the daemon.

A guest decides how many files the daemon has open, so the limit protects the host: once the host
has fs.file-max files open, no process that is not root can open a file. The daemons of several VMs
add up, and each fd of an inode pins about 1.2 KiB of kernel memory, which a control
group may limit. Where inodes are held by file handles, the fds are only a cache, so a higher
limit gains nothing.
"""

import os
import resource
from pathlib import Path
from typing import Final

from vfsd.supervisor.inode_limit import BYTES_PER_FD, memory_left
from vfsd.supervisor.options import RLIMIT_DEFAULT, Options
from vfsd.transport.errors import OperatorError
from vfsd.transport.native import lib

WANTED: Final = 1_000_000  # if each inode that the guest knows needs an fd
WANTED_WITH_HANDLES: Final = 100_000
FEWEST: Final = 4096  # however little memory there is
LEFT_TO_OTHERS: Final = 16_384  # files of fs.file-max that are left to others, as by both peers
_OF_A_PROCESS: Final = Path("/proc/sys/fs/nr_open")
_OF_THE_SYSTEM: Final = Path("/proc/sys/fs/file-max")


def default_limit(
    with_handles: bool, of_a_process: int, of_the_system: int, memory: int = 1 << 62
) -> int:
    """The wanted number of files, within the kernel's limit for a process, its limit for the whole
    system, and `memory` (bytes that the guest's files may take). If the limit of the system is
    small, half of it."""
    for_us = max(of_the_system - LEFT_TO_OTHERS, of_the_system // 2)
    wanted = WANTED_WITH_HANDLES if with_handles else WANTED
    part = memory // 4 if with_handles else memory
    return min(wanted, of_a_process, for_us, max(FEWEST, part // BYTES_PER_FD))


def set_file_limit(options: Options, shared_dir: int) -> str | None:
    """Set the limit of this process; returns a warning for the operator, or None. `shared_dir` is
    an fd.

    OperatorError if --strict is given and the number that the operator gave is not allowed.
    """
    wanted = options.rlimit_nofile
    if wanted == 0:
        return None
    of_a_process = int(_OF_A_PROCESS.read_text())
    if wanted == RLIMIT_DEFAULT:
        of_the_system = int(_OF_THE_SYSTEM.read_text())
        with_handles = has_handles(options, shared_dir)
        wanted = default_limit(with_handles, of_a_process, of_the_system, memory_left(options))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _set(wanted, max(hard, wanted)):
        return None
    if options.strict and "rlimit_nofile" in options.given:
        raise OperatorError(
            f"--rlimit-nofile: {wanted} open files are not allowed; the hard limit is {hard}; give"
            " a smaller number, or raise the hard limit of the process that starts virtiofsd"
        )
    if not _set(min(wanted, of_a_process), of_a_process):
        _set(hard, hard)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"only {most} files can be open at a time, not {wanted} (hard limit RLIMIT_NOFILE)"


def has_handles(options: Options, shared_dir: int) -> bool:
    """Can inodes be held without an fd of their own, as far as that is known before isolation?

    The pool decides by the same rule (vfsd/worker/handles.py): only root can open handles, and no
    process in a user namespace can. With the smaller limit, a `find` in the guest would fail
    half-way there."""
    asked = options.inode_file_handles
    is_root = os.geteuid() == 0 and not options.userns
    may_use = is_root and asked != "never" and (asked != "auto" or options.sandbox != "none")
    return may_use and bool(lib.file_system_facts(shared_dir) & lib.FS_LASTING_HANDLES)


def _set(soft: int, hard: int) -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ValueError, OSError):
        return False
    return True
