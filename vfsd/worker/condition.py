# SPDX-License-Identifier: Apache-2.0
"""What a job must be for its sandbox to keep a system call or a capability."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vfsd.transport.job import Job
from vfsd.transport.native import check, ffi, lib
from vfsd.worker.handles import Outcome


@dataclass(frozen=True)
class Condition:
    """A condition in words, and whether it holds for this process. The second argument of `holds`
    is how inodes are held: not the option --inode-file-handles, but what was decided from it."""

    words: str
    holds: Callable[[Job, Outcome], bool]


def _may_change_ids() -> bool:
    """Whether this process may change its ids; the same test as in credentials.c."""
    permitted = ffi.new("uint64_t *")
    check(lib.capabilities_permitted(permitted))
    ids = sum(1 << lib.capability_number(name) for name in (b"SETUID", b"SETGID"))
    return os.geteuid() == 0 or permitted[0] & ids == ids


ALWAYS: Final = Condition("always", lambda _job, _: True)
NEVER: Final = Condition("other architectures", lambda _job, _: False)
HANDLES: Final = Condition("file handles in workers", lambda _job, outcome: outcome.is_raw)
SIGNED: Final = Condition("a broker of file handles", lambda _job, o: o is Outcome.SIGNED)
XATTR: Final = Condition("--xattr", lambda job, _: job.fs.xattr)
WRITABLE: Final = Condition("not --readonly", lambda job, _: not job.fs.readonly)
READONLY: Final = Condition("--readonly", lambda job, _: job.fs.readonly)
FLOCK: Final = Condition("--flock", lambda job, _: job.fs.flock)
POSIX_LOCK: Final = Condition("--posix-lock", lambda job, _: job.fs.posix_lock)
DIRECT_IO: Final = Condition(
    "--allow-direct-io", lambda job, _: job.fs.allow_direct_io and job.thread_pool_size > 0
)
QUEUE_CPUS: Final = Condition("--queue-cpus", lambda job, _: bool(job.queue_cpus))
IDS: Final = Condition(
    "uid 0 in the sandbox, or CAP_SETUID and CAP_SETGID", lambda _job, _: _may_change_ids()
)
