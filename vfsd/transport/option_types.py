# SPDX-License-Identifier: Apache-2.0
"""What the options of the command line and the job of a pool agree on: switches, modes, bounds.

The command line is read before the extension is loaded, so what C has too is a number here;
tests/transport/test_constants.py ties the two. Nothing here reads, checks or imports anything.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

REQUEST_QUEUES_MAX: Final = 64
THREADS_MAX: Final = 1024  # of one worker, that wait for storage
FAULTS_MAX: Final = 1_000_000
SECONDS_MAX: Final = 10 * 365 * 86400.0
MICROSECONDS_MAX: Final = 1_000_000
CPU_MAX: Final = 1 << 16
ID_MAX: Final = (1 << 32) - 2  # (uid_t)-1 is nobody
POLL_AUTO: Final = -1

CACHE_MODES: Final = ("never", "metadata", "auto", "always")
SANDBOXES: Final = ("namespace", "chroot", "none")
SECCOMP_ACTIONS: Final = ("kill", "log", "trap", "none")
HANDLE_MODES: Final = ("auto", "never", "signed", "prefer", "mandatory")
NEGOTIATION_MODES: Final = ("never", "auto", "always")  # "auto": if the guest can


class IdRange(NamedTuple):
    """`length` ids from `inside` on, in the sandbox, are those from `outside` on."""

    inside: int
    outside: int
    length: int


@dataclass(frozen=True)
class Switches:
    """On-off options that the workers are given as the operator set them.

    A new one is a field here, a row of OPTIONS (supervisor/options.py), and what acts upon it: in
    C, a bool of the same name in struct fs_policy, which worker/policy.py copies.
    """

    writeback: bool = False
    allow_direct_io: bool = False
    allow_mmap: bool = False
    announce_submounts: bool = True
    idmapped_mounts: bool = True
    killpriv_v2: bool = True  # if the guest can
    flock: bool = False
    posix_lock: bool = False
    readonly: bool = False
    forbid_symlinks: bool = False
    preserve_noatime: bool = False
    allow_project_ids: bool = False
