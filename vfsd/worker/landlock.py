# SPDX-License-Identifier: Apache-2.0
"""Landlock: what confines the sandbox modes that have no namespaces.

THEORY

Purpose. In a pid and a mount namespace of its own a worker sees no process and no mount of the
host. With --sandbox=chroot a worker sees both, and with --sandbox=none paths lead to all files of
the host. A Landlock domain, which needs no privilege, prevents most of what a worker could do with
that. The pool enters the domain before it creates a worker; a process cannot leave a domain.

There are two kinds of domain, by what they deny outside of the domain and of the share:
  PROCESSES  ptrace(2) and all accesses that are checked like it: /proc/PID/root, cwd, fd and mem
             of every process outside (so setresuid() to the user of such a process opens no way
             into its root directory); from Linux 6.12 on also signals to processes outside, and
             their abstract sockets.
  FILES      the same, and to read, write, truncate, create, remove, rename, link and list files.

Why not always FILES. The kernel finds a rule by walking from the file up to the directory of the
rule. A file that a worker or the broker opened by its handle may have no way up (its dentry is
disconnected once the cache has dropped its names), and the kernel then refuses the file although it
is in the share. So FILES is only for inodes that are held by fds. PROCESSES does not restrict
files. With --sandbox=chroot no path leads out of the share anyway: the root directory is the root
of a mount, and /proc is attached nowhere.

What neither kind denies: chmod, chown, utimes, xattrs, stat and O_PATH opens by a path. These calls
give no access to the contents of files, but with --sandbox=none a worker with root's capabilities
can change owners and modes of the host's files.

Every domain denies moves and hard links between directories unless a rule allows them, and version
1 (before Linux 5.19) denies them whatever the rules say. A guest needs them, so version 2 is the
oldest version that is used.
"""

import os
from typing import Final

from vfsd.transport.native import check, lib

PROCESSES: Final = "processes"
FILES: Final = "files"
ABI_MIN: Final = 2

_READ: Final = lib.LANDLOCK_READ_FILE | lib.LANDLOCK_READ_DIR
# Not LANDLOCK_EXECUTE: nothing in the share is executed here.
_CHANGE: Final = (
    lib.LANDLOCK_WRITE_FILE
    | lib.LANDLOCK_TRUNCATE
    | lib.LANDLOCK_REMOVE_FILE
    | lib.LANDLOCK_REMOVE_DIR
    | lib.LANDLOCK_MAKE_REG
    | lib.LANDLOCK_MAKE_DIR
    | lib.LANDLOCK_MAKE_SYM
    | lib.LANDLOCK_MAKE_CHAR
    | lib.LANDLOCK_MAKE_BLOCK
    | lib.LANDLOCK_MAKE_FIFO
    | lib.LANDLOCK_MAKE_SOCK
    | lib.LANDLOCK_REFER
)


def is_available() -> bool:
    """Is Landlock in this kernel, switched on, and young enough for a guest's renames?"""
    return bool(lib.landlock_abi() >= ABI_MIN)


def confine(kind: str, root_fd: int, proc_fd: int, readonly: bool) -> None:
    """Enter a domain of this kind, in which all files beneath the directory `root_fd` may be used.

    The domain stays in force for this process and all processes that it creates; the process must
    have one thread. Sets no_new_privs. OSError if the kernel refuses.
    """
    check(lib.process_no_new_privs())
    rules = check(lib.landlock_create_scoped(kind == FILES))
    try:
        if kind == FILES:
            _allow(rules, root_fd, _READ if readonly else _READ | _CHANGE)
            _allow(rules, proc_fd, _READ)
        else:
            _allow(rules, root_fd, lib.LANDLOCK_REFER)
        check(lib.landlock_enforce(rules))
    finally:
        os.close(rules)


def _allow(rules: int, directory: int, access: int) -> None:
    """Add a rule. A rule may only name access rights that this kernel knows."""
    check(lib.landlock_allow(rules, directory, access & lib.landlock_known()))
