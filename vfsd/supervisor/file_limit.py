# SPDX-License-Identifier: Apache-2.0
"""How many files may be open (RLIMIT_NOFILE): set once, by the keeper, for all it starts.

A guest decides how many files the daemon has open, so the limit protects the host: beyond
fs.file-max no process that is not root can open anything any more. Several VMs add up, and each fd
of an inode pins about 1.2 KiB of the kernel's memory, which a control group may limit. Where inodes
are held by file handles, fds are a cache, and more of them gain nothing.
"""

import os
import resource
from pathlib import Path
from typing import Final

from vfsd.supervisor.inode_limit import BYTES_PER_FD, memory_left
from vfsd.supervisor.options import RLIMIT_DEFAULT, Options
from vfsd.transport.errors import OperatorError
from vfsd.transport.native import lib

WANTED: Final = 1_000_000  # where each inode that the guest knows is an fd
WANTED_WITH_HANDLES: Final = 100_000
FEWEST: Final = 4096  # however little memory there is
LEFT_TO_OTHERS: Final = 16_384  # of fs.file-max, as both peers leave it
_OF_A_PROCESS: Final = Path("/proc/sys/fs/nr_open")
_OF_THE_SYSTEM: Final = Path("/proc/sys/fs/file-max")


def default_limit(
    with_handles: bool, of_a_process: int, of_the_system: int, memory: int = 1 << 62
) -> int:
    """What is wanted, as far as the kernel's limits for a process and for all of them allow it, and
    `memory` (bytes that the guest's files may take); at most half of the limit for all where it is
    small."""
    for_us = max(of_the_system - LEFT_TO_OTHERS, of_the_system // 2)
    wanted = WANTED_WITH_HANDLES if with_handles else WANTED
    part = memory // 4 if with_handles else memory
    return min(wanted, of_a_process, for_us, max(FEWEST, part // BYTES_PER_FD))


def set_file_limit(options: Options, shared_dir: int) -> str | None:
    """Set the limit of this process; returns what the operator should know about it, or None.
    `shared_dir`: its fd.

    OperatorError if what the operator asked for is not allowed, and --strict is given.
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
            f"--rlimit-nofile: {wanted} open files are not allowed here (limit {hard}); give a"
            " smaller number, or raise the limit of whoever starts virtiofsd"
        )
    if not _set(min(wanted, of_a_process), of_a_process):
        _set(hard, hard)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"only {most} files can be open at a time, not {wanted} (hard limit RLIMIT_NOFILE)"


def has_handles(options: Options, shared_dir: int) -> bool:
    """Can inodes be held without an fd of their own, as far as that is known before isolation?

    As the pool decides (vfsd/worker/handles.py): handles are root's, and in a user namespace
    nobody's. `find` of a guest would stop at the smaller limit there."""
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
