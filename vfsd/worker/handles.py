# SPDX-License-Identifier: Apache-2.0
"""How inodes are held: by fds, by file handles, or by handles that a broker opens; and why.

A process that may open file handles reaches every file of a file system (open_by_handle_at(2)). So
workers open handles themselves only if that file system is the share and nothing else, or if the
operator says so. Otherwise the broker opens for the workers the files that they had open before
(handle_broker.c). If no process may open handles, each inode that the guest knows costs an fd.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from vfsd.transport.job import Job


class Outcome(Enum):
    """What was decided from --inode-file-handles. policy.py has the constants of policy.h for these
    values."""

    FDS = "never"
    SIGNED = "signed"
    PREFER = "prefer"
    MANDATORY = "mandatory"

    @property
    def is_raw(self) -> bool:
        """Do workers open handles themselves?"""
        return self in (Outcome.PREFER, Outcome.MANDATORY)


@dataclass(frozen=True)
class Reach:
    """What the handles of the share's file system reach. `beyond`: what they reach besides the
    share, in words; "" if nothing."""

    file_system: str  # its type and source
    beyond: str


@dataclass(frozen=True)
class Handles:
    """How inodes are held. `line`: what the log says about it at the start; `is_hazard`: that line
    is a warning. `sockets`: the socket of each worker slot to the broker."""

    outcome: Outcome
    line: str = ""
    is_hazard: bool = False
    sockets: tuple[int, ...] = ()

    def socket_of(self, slot: int) -> int:
        """The socket of a worker slot to the broker; -1 if there is no broker."""
        return self.sockets[slot] if self.sockets else -1


# File systems whose handles lead only to files that a path from their root also leads to. Network
# file systems are not here, because their handles are the server's; nor is overlayfs, which is made
# of other file systems.
LOCAL: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"})


@dataclass(frozen=True)
class _Mount:
    """A line of /proc/PID/mountinfo."""

    number: int
    parent: int
    root: str  # the directory of the file system that is mounted
    kind: str
    source: str

    @classmethod
    def parse(cls, line: str) -> "_Mount":
        before, _, after = line.partition(" - ")
        number, parent, _, root = before.split()[:4]
        kind, source = after.split()[:2]
        return cls(int(number), int(parent), root, kind, source)


def reach(mountinfo: str, mount_id: int, is_mount_root: bool) -> Reach:
    """What handles reach through the mount `mount_id`. `is_mount_root`: the share is the root
    directory of that mount.

    If `mountinfo` cannot be read, the handles count as reaching more than the share.
    """
    try:
        mounts = [_Mount.parse(line) for line in mountinfo.splitlines()]
        own = next(mount for mount in mounts if mount.number == mount_id)
    except (ValueError, StopIteration):
        return Reach("an unknown file system", "whatever is on it")
    name = f"{own.kind} of {own.source}"
    if own.kind not in LOCAL:
        return Reach(name, "what this kind of file system has besides")
    if own.root != "/" or not is_mount_root:
        return Reach(name, "all that is beside the share on it")
    if any(mount.parent == mount_id and mount is not own for mount in mounts):
        return Reach(name, "what other mounts in the share cover")
    return Reach(name, "")


_NO_HANDLES: Final = (
    "the file system has no lasting handles (FUSE, virtio-fs), or CAP_DAC_READ_SEARCH is missing ("
    "the capability has no effect in a user namespace)"
)


class NoHandlesError(Exception):
    """--inode-file-handles=mandatory, and handles cannot be opened. The text is one line."""


def may_use(job: Job) -> bool:
    """Can handles be in use at all?"""
    asked = job.fs.inode_file_handles
    return not (asked == "never" or job.userns or (asked == "auto" and job.sandbox == "none"))


def decide(job: Job, found: Reach, can_open: bool) -> Handles:
    """Decide how inodes are held. `can_open`: a process with CAP_DAC_READ_SEARCH can open handles
    here.

    NoHandlesError if the operator insists on handles.
    """
    asked = job.fs.inode_file_handles
    if asked == "never":
        return Handles(Outcome.FDS, "inodes are held by fds")
    if asked == "auto" and job.sandbox == "none":
        why = "Landlock could not protect the host's files from a process that opens handles"
        return Handles(Outcome.FDS, f"inodes are held by fds: {why}")
    if not can_open or not may_use(job):
        return _without(asked)
    if asked == "signed" or (asked == "auto" and found.beyond):
        return Handles(
            Outcome.SIGNED,
            "inodes are held by fds, and by file handles when fds become scarce: a broker opens "
            f"files that workers had open, and no others of the file system ({found.file_system})",
        )
    outcome = Outcome.MANDATORY if asked == "mandatory" else Outcome.PREFER
    return Handles(outcome, _line_of_raw(asked, found), is_hazard=bool(found.beyond))


def _without(asked: str) -> Handles:
    if asked == "mandatory":
        raise NoHandlesError(
            f"files cannot be held by handles here: {_NO_HANDLES};"
            " try --inode-file-handles=auto, or run as root with that capability"
        )
    return Handles(
        Outcome.FDS,
        f"each inode that the guest knows holds an fd: no file handles, because {_NO_HANDLES}",
        is_hazard=asked != "auto",
    )


def _line_of_raw(asked: str, found: Reach) -> str:
    if not found.beyond:
        return (
            "inodes are held by file handles, which workers open: handles reach only the share, "
            f"which is the whole of its file system ({found.file_system})"
        )
    return (
        f"inodes are held by file handles, which workers open (--inode-file-handles={asked}): a "
        "worker that is taken over reaches every file of the share's file system "
        f"({found.file_system}), with {found.beyond}; --inode-file-handles=signed prevents that"
    )
