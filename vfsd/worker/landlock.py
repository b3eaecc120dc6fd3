# SPDX-License-Identifier: Apache-2.0
"""Landlock: what confines the sandbox modes that have no namespaces.

THEORY

Purpose. In a pid and a mount namespace of its own a worker sees no other process and no other
mount. With --sandbox=chroot it sees both, and with --sandbox=none every path leads anywhere. A
Landlock domain, which needs no privilege, takes away most of what follows from that. The pool
enters it before it creates a worker; nothing leaves a domain.

Two kinds, by what is denied outside of the domain and of the share:
  PROCESSES  ptrace(2) and whatever is checked like it: /proc/PID/root, cwd, fd and mem of every
             process outside (so setresuid() to its user opens no way into its root directory);
             from Linux 6.12 on signals to them and their abstract sockets.
  FILES      that, and to read, write, truncate, create, remove, rename, link and list files.

Why not always FILES. The kernel finds a rule by walking from the file up to the directory of the
rule. A file that was opened by its handle, whoever did it, may have no way up (its dentry is
disconnected once the cache has dropped its names), and is refused then although it is in the share.
So FILES is for inodes that are held by fds. PROCESSES does not look at files: with --sandbox=chroot
no path leads out anyway: the root directory is the root of a mount, and /proc is attached nowhere.

What Landlock does not deny, in either kind: chmod, chown, utimes, xattrs, stat and O_PATH opens by
a path. Nothing of the share's content can be had that way, but with --sandbox=none a worker with
root's capabilities changes owners and modes of the host's files.

Moves and hard links between directories are denied by every domain unless a rule allows them, and
by version 1 (before Linux 5.19) whatever the rules say. A guest cannot do without, so version 2 is
the least.
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
    """Enter a domain of this kind, in which all beneath the directory `root_fd` may be used.

    It stays for this process and all it creates; the process must have one thread. Sets
    no_new_privs. OSError if the kernel refuses.
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
    """A rule may only name what this kernel knows."""
    check(lib.landlock_allow(rules, directory, access & lib.landlock_known()))
