# SPDX-License-Identifier: Apache-2.0
"""What the stages of isolation have in common: the result that they leave behind, and how they
fail."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vfsd.transport.heritage import Namespaces
from vfsd.worker.handles import Handles, Outcome
from vfsd.worker.oom_score import OomScore

# Read at the start: after the stage "namespaces" the process may be root of a user namespace.
IS_ROOT: Final = os.geteuid() == 0
NAMESPACE: Final = "namespace"
CHROOT: Final = "chroot"
NONE: Final = "none"
CHROOT_HINT: Final = (
    "without CAP_SYS_ADMIN a chroot would not hold a worker that is taken over; "
    f"run {'' if IS_ROOT else 'as root '}with it, or try --sandbox=namespace or --sandbox=none"
)


class IsolationError(Exception):
    """A stage failed: one line says what, on which object, why, and what works instead."""


_HELD_BY_FDS: Final = Handles(Outcome.FDS)
_UNCHANGED: Final = OomScore()


@dataclass
class Sandbox:
    """The result of isolation, for holder and pools. `notes`: lines for the operator, which the log
    shows as warnings."""

    root_fd: int = -1  # O_PATH, the shared directory
    proc_fd: int = -1  # a /proc in which every process finds itself
    oom_score: OomScore = _UNCHANGED  # of the holder
    worker_filter: bytes = b""  # which each worker adds to the pool's; none with --seccomp=none
    handles: Handles = _HELD_BY_FDS
    has_capset: bool = True  # else a worker cannot give up CAP_FSETID for a request
    former: Namespaces | None = None  # of the sandbox whose place this one is to take
    notes: list[str] = field(default_factory=list)

    def mountinfo(self) -> str:
        """/proc/self/mountinfo; bytes in a path that are not text are escaped."""
        fd = os.open("self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc_fd)
        with os.fdopen(fd, errors="backslashreplace") as file:
            return file.read()


def attempt(what: str, hint: str, action: Callable[[], int | None]) -> int:
    """Do one step. If the step fails, IsolationError says what was tried, why it failed, and what
    to do."""
    try:
        return action() or 0
    except OSError as error:
        raise IsolationError(f"cannot {what}: {error.strerror}; {hint}") from None
