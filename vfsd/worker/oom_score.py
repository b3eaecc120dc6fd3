# SPDX-License-Identifier: Apache-2.0
"""Which process the kernel kills when memory is short: first a worker, which is created again.

THEORY

Purpose. If the pool dies, the whole sandbox is lost, and the guest waits until another one is
built; if the keeper, the supervisor or the launcher dies, the share ends; if the broker dies, the
inodes without an fd are lost. So workers have a higher oom_score_adj than all of these processes.

How. A process may raise its own score without privilege, and lower the score again to the value
that a privileged process had set. A child starts with the score of its parent. So the pool raises
its own score, creates a worker, and lowers the score again. The /proc of the sandbox is mounted
read-only, so the pool opens its oom_score_adj before that mount. Other processes that the pool
creates keep the pool's score.

How much. The unit of a score is a thousandth of the memory in question, of the machine or of the
cgroup. The pool's memory counts the pages of the inode table that a sweep has touched, and a worker
that has just been created has touched none. A table is up to half of a small cgroup's limit.

What a worker that was taken over can do. The fd table is shared, so such a worker can write the
pool's score, and so have the pool killed when memory is short. But such a worker can also end the
pool in another way, by closing the pool's fds.

Death. If the pool dies while its score is raised, there is no score left to be restored.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
        """The score of a worker. A daemon that the operator has exempted (NEVER_KILLED) stays
        exempt."""
        return self.own if self.own == NEVER_KILLED else min(self.own + RAISE, MOST)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """A process that is created in this context has the score of a worker."""
        self._write(self.of_workers)
        try:
            yield
        finally:
            self._write(self.own)

    def _write(self, score: int) -> None:
        if self.fd >= 0:
            os.write(self.fd, str(score).encode())
