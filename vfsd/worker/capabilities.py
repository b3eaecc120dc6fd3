# SPDX-License-Identifier: Apache-2.0
"""Which Linux capabilities the pool and its workers keep, each with its reason and condition.

The pool needs no capability for itself: the workers that it kills have its own real uid, also while
they act for another user. Not kept, on purpose: SETPCAP, SYS_ADMIN and all others. The bounding set
is emptied, so no capability can be gained again by exec.
"""

from collections.abc import Mapping
from typing import Final

from vfsd.transport.job import Job
from vfsd.transport.native import check, ffi, lib
from vfsd.worker import condition
from vfsd.worker.condition import Condition
from vfsd.worker.handles import Outcome

KEPT: Final = {
    "CHOWN": "SETATTR of owner and group, on the guest's authority",
    "DAC_OVERRIDE": "files of every owner: the guest's kernel has checked permissions",
    "FOWNER": "SETATTR of mode and times, sticky directories, xattrs of files of other owners",
    "FSETID": "set-id bits stay when the guest says so; dropped per request when they must go",
    "SETGID": "create as the requesting user's group",
    "SETUID": "create as the requesting user",
    "MKNOD": "MKNOD of devices, RENAME_WHITEOUT",
    "SETFCAP": "SETXATTR of security.capability",
}
# DAC_READ_SEARCH opens any inode of the file systems that the share is on, so it is kept only where
# it is used. With --readonly it replaces DAC_OVERRIDE, which also allows writing; then seccomp
# allows no call that opens an inode by its handle (syscalls.h).
FOR_HANDLES: Final = {
    "DAC_READ_SEARCH": "inodes held by file handles; files of every owner on a read-only share"
}
# When a capability is kept; a capability without a row here is always kept.
WHEN: Final[Mapping[str, Condition]] = {
    "CHOWN": condition.WRITABLE,
    "DAC_OVERRIDE": condition.WRITABLE,
    "FOWNER": Condition(
        "not --readonly, or --preserve-noatime",  # open(2): O_NOATIME
        lambda job, _: not job.fs.readonly or job.fs.preserve_noatime,
    ),
    "FSETID": condition.WRITABLE,
    "MKNOD": condition.WRITABLE,
    "SETFCAP": Condition(
        "--xattr, not --readonly", lambda job, _: job.fs.xattr and not job.fs.readonly
    ),
    "DAC_READ_SEARCH": Condition(
        "file handles in workers, or --readonly",
        lambda job, outcome: outcome.is_raw or job.fs.readonly,
    ),
}


def number(name: str) -> int:
    """The number of a capability; ValueError if its name is unknown."""
    value: int = lib.capability_number(name.encode())
    if value < 0:
        raise ValueError(f"there is no capability {name!r}")
    return value


def mask(names: set[str]) -> int:
    return sum(1 << number(name) for name in names)


def wanted(job: Job, outcome: Outcome) -> set[str]:
    """The names to keep for a job without --modcaps. `outcome`: how inodes are held."""
    names = KEPT.keys() | FOR_HANDLES.keys()
    return {name for name in names if WHEN.get(name, condition.ALWAYS).holds(job, outcome)}


def modified(names: set[str], modcaps: str) -> set[str]:
    """`names` after `modcaps`: "+sys_admin:-mknod" adds SYS_ADMIN and removes MKNOD. ValueError
    says what is wrong with `modcaps`."""
    names = set(names)
    for item in filter(None, modcaps.split(":")):
        number(item[1:])
        name = item[1:].upper().removeprefix("CAP_")
        if item[0] == "+":
            names.add(name)
        elif item[0] == "-":
            names.discard(name)
        else:
            raise ValueError(f"{item!r} begins with neither + nor -")
    return names


def permitted() -> int:
    """The capabilities this process may use, as a mask."""
    ret = ffi.new("uint64_t *")
    check(lib.capabilities_permitted(ret))
    return int(ret[0])


def missing(names: set[str]) -> set[str]:
    """The names of capabilities that this process does not have."""
    have = permitted()
    return {name for name in names if not have >> number(name) & 1}


def limit(names: set[str]) -> set[str]:
    """Keep these capabilities, as far as this process has them, and no others; returns the names
    that the process does not have."""
    lacking = missing(names)
    check(lib.capabilities_limit(mask(names - lacking)))
    return lacking
