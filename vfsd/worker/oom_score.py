# SPDX-License-Identifier: Apache-2.0
"""Which process the kernel kills when memory is short: first a process that is created again.

THEORY

Purpose. If the holder dies, the whole sandbox is lost, and the guest waits until another is built;
if the keeper, the supervisor or the launcher dies, more is lost than a worker; if the broker dies,
the inodes without an fd are lost. So pool and workers, whose death the guest does not notice, have
a higher oom_score_adj than all of these processes.

How. A process may raise its own score without privilege, and lower the score again to the value
that a privileged process had set. A child starts with the score of its creator. So the holder
raises its own score, creates a pool, and lowers the score again; the workers have their pool's
score. The /proc of the sandbox is mounted read-only, so the holder opens its oom_score_adj before
that mount. A pool could not open its own.

How much. The unit of a score is a thousandth of the memory in question, of the machine or of the
cgroup.

What a worker that was taken over can do. The fd table is shared, so such a worker can write the
holder's score, and so have the holder killed when memory is short. But such a worker can also end
the share in another way, by closing the pool's fds. If the worker closes this fd, no score is
changed any more, and pools are created all the same.

Death. If the holder dies while its score is raised, there is no score left to be restored.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

PATH: Final = "/proc/self/oom_score_adj"
RAISE: Final = 500
MOST: Final = 1000
NEVER_KILLED: Final = -1000


@dataclass(frozen=True)
class OomScore:
    """The score of the process that called open(). Writing to `fd` sets that score; -1: the score
    cannot be changed."""

    fd: int = -1
    own: int = 0

    @classmethod
    def open(cls) -> "OomScore":
        """The score of this process; OSError if the score cannot be changed."""
        fd = os.open(PATH, os.O_RDWR | os.O_CLOEXEC)
        return cls(fd, int(os.read(fd, 16)))

    @property
    def of_workers(self) -> int:
        """The score of pool and workers. A daemon that the operator has exempted (NEVER_KILLED)
        stays exempt."""
        return self.own if self.own == NEVER_KILLED else min(self.own + RAISE, MOST)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """A process that is created in this context has the score of pool and workers."""
        self._write(self.of_workers)
        try:
            yield
        finally:
            self._write(self.own)

    def _write(self, score: int) -> None:
        if self.fd >= 0:
            with suppress(OSError):
                os.write(self.fd, str(score).encode())
