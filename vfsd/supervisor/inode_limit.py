# SPDX-License-Identifier: Apache-2.0
"""How many files the guest may know: the size of the inode table.

A guest decides how many inodes it keeps, and the table is shared memory, which is not reclaimed:
beyond the limit of the control group the kernel would kill the daemon. So the table never becomes
larger than what each control group that this process is in, and a quarter of the memory of the
host, leave after the processes' own need. (The host has other programs, and other guests.)
--inode-limit sets another limit, up to what the whole memory of the host allows. At the limit the
guest gets ENFILE for files that it does not know yet.
"""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vfsd.supervisor.options import Options
from vfsd.transport.option_types import INODES_MAX

# Measured (docs/hosts.md): shared memory of the inode table, and page tables of a few workers.
BYTES_PER_INODE: Final = 128
BYTES_PER_FD: Final = 1500  # of the kernel's memory, for an open file and its inode
# Memory that cannot be reclaimed: of all processes but the workers, the kernel's part included.
PROCESSES_BYTES: Final = 36 << 20
WORKER_BYTES: Final = 4 << 20  # the same of each worker
FEWEST: Final = 16_384  # fewer are of no use
HOST_PART: Final = 4  # the table may take the memory of the host divided by this number
_CGROUPS: Final = Path("/sys/fs/cgroup")
_LIMIT_FILES: Final = ("memory.max", "memory.limit_in_bytes")  # version 2, version 1


def inode_limit(options: Options, has_handles: bool) -> int:
    """How many inodes the table has room for, the root apart. `has_handles`: an inode can be
    held without an fd.

    Call this after the limit of open files is set, because up to half of them are cached fds of
    inodes.
    """
    left = memory_left(options)
    fds = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 if has_handles else 0
    each = BYTES_PER_INODE if has_handles else BYTES_PER_INODE + BYTES_PER_FD
    fit = (left - min(fds * BYTES_PER_FD, left // 2)) // each
    return min(options.inode_limit or INODES_MAX, INODES_MAX, max(FEWEST, fit))


def memory_left(options: Options) -> int:
    """Bytes that the guest's files may take, beside the processes' own need."""
    limit = memory_limit(host_part=1 if options.inode_limit else HOST_PART)
    return max(0, limit - PROCESSES_BYTES - options.workers * WORKER_BYTES)


def memory_limit(
    meminfo: Path = Path("/proc/meminfo"),
    membership: Path = Path("/proc/self/cgroup"),
    cgroups: Path = _CGROUPS,
    host_part: int = 1,
) -> int:
    """Bytes of memory that this process and its kin can have, at most: what control groups allow,
    and the memory of the host divided by `host_part`."""
    return min(_of_host(meminfo) // host_part, *_of_groups(membership, cgroups))


def _of_host(meminfo: Path) -> int:
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(fields["MemTotal"].split()[0]) * 1024


def _of_groups(membership: Path, cgroups: Path) -> Iterator[int]:
    """The limits of the groups that `membership` names, and of those above them."""
    yield INODES_MAX * BYTES_PER_INODE
    for folder in _folders(membership, cgroups):
        for group in (folder, *folder.parents):
            if group in cgroups.parents:
                break
            yield from _limits_in(group)


def _folders(membership: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of the groups. In a container a group may be named by a path that is not there:
    its folder is then the uppermost."""
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            for top in (cgroups, cgroups / "memory", cgroups / "unified"):
                yield top / path.lstrip("/")


def _limits_in(group: Path) -> Iterator[int]:
    for name in _LIMIT_FILES:
        text = _text(group / name).strip()
        if text.isdecimal() and int(text) < 1 << 60:
            yield int(text)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
