# SPDX-License-Identifier: Apache-2.0
"""How many faults a pool takes before it stops creating a worker again.

THEORY

Purpose. A guest that has found an error in memory handling can use it only if it knows addresses. A
worker that dies is replaced by a clone of the same pool, with the same addresses: so each death is
a guess, and without a limit a guest guesses as fast as workers are created.

What is counted. Deaths by the signals of FAULTS, in all slots together, since all workers have the
addresses of the pool. Not counted: SIGKILL, which is the operator's or the kernel's when memory is
short, and exits with a status, which are Python's exceptions. A death by SIGSYS is enough alone: an
honest worker makes no forbidden call, so one that does belongs to somebody else.

What follows. The slot stays empty while the pool lives, so its rings stop; the others are served.
So is a fault of another slot in the same hour answered. A VMM that connects again gets a new pool,
with new addresses and a new budget; it is the VMM that decides about that, not its guest.

What it is worth. With the default of 10 in an hour a guest has 10 guesses at once, one more for
each slot, and 240 a day if it is patient. Libraries are placed with 28 bits of chance on x86-64:
that is a chance of one in a million a day, and each try is a line in the log. The stack protector's
word cannot be learnt byte by byte, since each worker has its own (clone_process.c), and its 56 bits
are too many to be guessed at once.

Why not new addresses. They come with exec only, and an exec'd process has to get the table of fds
that all workers share (an fd keeps its number and its file for as long as the guest has it open),
the mounts of a sandbox that no path leads to, and its mappings, all from the pool: it would have to
be a second pool, isolated like the first one. That is to be had when a pool can be replaced under a
guest; then the budget's end is the time to do it.
"""

import signal
from collections import deque
from typing import Final

FAULTS: Final = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGABRT,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
    }
)
WINDOW_SECONDS: Final = 3600.0


class FaultBudget:
    """The faults of one pool's workers. `limit`: how many in an hour are answered with a new
    worker; 0: any number."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: deque[float] = deque()

    def why_not_again(self, code: int, now: float) -> str | None:
        """A worker ended with `code` (negative: by that signal) at `now` (time.monotonic): why it
        is not to be created again, or None if it is."""
        if -code == signal.SIGSYS:
            return "it made a system call that no worker makes (SIGSYS)"
        if -code not in FAULTS:
            return None
        while self._times and now - self._times[0] >= WINDOW_SECONDS:
            self._times.popleft()
        self._times.append(now)
        if self._limit and len(self._times) > self._limit:
            self._times.popleft()  # as many as matter
            return f"workers died of more than {self._limit} faults within an hour"
        return None
