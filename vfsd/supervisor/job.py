# SPDX-License-Identifier: Apache-2.0
"""The job: what a pool is told once, at its start, as JSON in a segment that cannot change.

The pool parses no options and reads no configuration; everything here is checked already.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Final

from vfsd.supervisor.option_values import FOR_EVER
from vfsd.supervisor.options import Options, cache_timeout
from vfsd.transport.native import ffi, lib
from vfsd.transport.shared_memory import create_blob, create_segment

INODE_CAPACITY: Final = 1 << 20
FILE_CAPACITY: Final = 1 << 18
WORKERS_BYTES: Final = ffi.sizeof("struct worker_table")
_FS_FLAGS: Final = (
    "xattr", "posix_acl", "writeback", "readdirplus", "allow_direct_io", "announce_submounts",
    "killpriv_v2", "flock", "posix_lock", "readonly", "allow_mmap", "preserve_noatime",
    "allow_project_ids", "security_label", "idmapped_mounts",
)  # fmt: skip


@dataclass(frozen=True)
class Segments:
    """The shared segments of one pool (fds): device state, tables, ring records, worker table.

    The device's is the keeper's, and every pool's (device.py); the others are the pool's own.
    """

    device: int
    inodes: int
    files: int
    rings: int
    workers: int

    @classmethod
    def create(cls, device: int) -> "Segments":
        return cls(
            device=device,
            inodes=create_segment("vfsd-inodes", lib.inode_table_bytes(INODE_CAPACITY)),
            files=create_segment("vfsd-files", lib.file_table_bytes(FILE_CAPACITY)),
            rings=create_segment("vfsd-rings", lib.ring_records_bytes()),
            workers=create_segment("vfsd-workers", WORKERS_BYTES),
        )

    def fds(self) -> list[int]:
        return list(asdict(self).values())

    def close(self) -> None:
        """Close the pool's own."""
        for fd in self.fds():
            if fd != self.device:
                os.close(fd)


def create_job(name: str, options: Options, supervisor: int, fds: dict[str, Any]) -> int:
    """The job of a pool that is given `fds`; returns the fd of its segment. `supervisor`: its user
    id."""
    job = {
        "name": name,
        "shared_dir": options.shared_dir,
        "sandbox": options.sandbox,
        "seccomp": options.seccomp,
        "slots": options.workers,
        "log_level": options.log_level,
        "poll_us": options.poll_us,
        "thread_pool_size": options.thread_pool_size,
        "modcaps": options.modcaps,
        "userns": options.userns,
        "supervisor": supervisor,
        "worker_faults": options.worker_faults,
        "uid_map": options.uid_map,
        "gid_map": options.gid_map,
        "queue_cpus": options.queue_cpus,
        "inode_capacity": INODE_CAPACITY,
        "file_capacity": FILE_CAPACITY,
        "fs": fs_policy(options),
        "fds": fds,
    }  # fmt: skip
    return create_blob("vfsd-job", json.dumps(job).encode())


def fs_policy(options: Options) -> dict[str, Any]:
    """What the guest may do and cache, as the workers read it. Times in seconds."""
    timeout = cache_timeout(options)
    entry, attr = options.entry_timeout, options.attr_timeout
    return {
        "cache": options.cache,
        "entry_timeout": timeout if entry is None else entry,
        "attr_timeout": timeout if attr is None else attr,
        "negative_timeout": options.negative_timeout,
        "lock_wait": None if options.lock_wait == FOR_EVER else options.lock_wait,
        "killpriv_v2_asked": "killpriv_v2" in options.given,
        "inode_file_handles": options.inode_file_handles,
        "translate_uid": options.translate_uid,
        "translate_gid": options.translate_gid,
        "xattrmap": options.xattrmap,
    } | {flag: getattr(options, flag) for flag in _FS_FLAGS}
