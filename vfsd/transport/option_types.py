# SPDX-License-Identifier: Apache-2.0
"""What the options of the command line and the job of a pool agree on: switches, modes, bounds.

The command line is read before the extension is loaded, so constants that are declared in C are
repeated here as numbers; tests/transport/test_constants.py ties each pair. Nothing here reads,
checks or imports anything.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

REQUEST_QUEUES_MAX: Final = 64
THREADS_MAX: Final = 1024  # threads of one worker that wait for storage
FAULTS_MAX: Final = 1_000_000
SECONDS_MAX: Final = 10 * 365 * 86400.0
INODES_MAX: Final = (1 << 28) - 1  # without the root
MICROSECONDS_MAX: Final = 1_000_000
CPU_MAX: Final = 1 << 16
ID_MAX: Final = (1 << 32) - 2  # (uid_t)-1 is not an id
POLL_AUTO: Final = -1

CACHE_MODES: Final = ("never", "metadata", "auto", "always")
SANDBOXES: Final = ("namespace", "chroot", "none")
SECCOMP_ACTIONS: Final = ("kill", "log", "trap", "none")
HANDLE_MODES: Final = ("auto", "never", "signed", "prefer", "mandatory")
NEGOTIATION_MODES: Final = ("never", "auto", "always")  # "auto": if the guest supports it


class IdRange(NamedTuple):
    """`length` ids in the sandbox, from `inside` on, are the ids from `outside` on."""

    inside: int
    outside: int
    length: int


@dataclass(frozen=True)
class Switches:
    """On-off options that reach the workers as the operator set them.

    A new switch is a field here, a row of OPTIONS (supervisor/options.py), and the code that acts
    upon it: in C, a bool of the same name in struct fs_policy, which worker/policy.py copies.
    """

    writeback: bool = False
    allow_direct_io: bool = False
    allow_mmap: bool = False
    announce_submounts: bool = True
    idmapped_mounts: bool = True
    killpriv_v2: bool = True  # if the guest supports it
    flock: bool = False
    posix_lock: bool = False
    readonly: bool = False
    forbid_symlinks: bool = False
    preserve_noatime: bool = False
    allow_project_ids: bool = False
