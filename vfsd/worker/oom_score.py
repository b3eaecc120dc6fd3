# SPDX-License-Identifier: Apache-2.0
"""Whom the kernel kills when memory is short: a worker first, which is created again.

THEORY

Purpose. With the pool go all files that the guest has open, with the keeper, the supervisor or the
launcher the share, with the broker the inodes that have no fd. So workers have a higher
oom_score_adj than all of these.

How. A process may raise its own score without privilege, and lower the score again as far as a
privileged process had set it. A child starts with the score of its parent. The /proc of the sandbox
is mounted read-only, so the pool opens its own oom_score_adj before that, raises the score, creates
a worker, and goes back. The processes that the pool creates otherwise keep the pool's score.

How much. The unit of a score is a thousandth of the memory in question, of the machine or of the
cgroup. The pool's memory counts the pages of the inode table that a sweep has touched, and a worker
that has just been created has touched none. A table is up to half of a small cgroup's limit.

What a worker that was taken over can do. The fd table is shared, so such a worker may write the
pool's score: it may have the pool killed when memory is short. It can end the pool without that, by
closing the pool's fds.

Death. If the pool dies while its score is raised, nothing is left to go back.
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
    """The score of the process that opened this. `fd` writes that score; -1: nothing does."""

    fd: int = -1
    own: int = 0

    @classmethod
    def open(cls) -> "OomScore":
        """That of this process; OSError if it cannot be changed."""
        fd = os.open(PATH, os.O_RDWR | os.O_CLOEXEC)
        return cls(fd, int(os.read(fd, 16)))

    @property
    def of_workers(self) -> int:
        """What the operator exempts stays exempt."""
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
