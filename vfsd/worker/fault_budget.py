# SPDX-License-Identifier: Apache-2.0
"""How many faults a sandbox takes before a worker is not created again.

THEORY

Purpose. A guest that has found an error in memory handling can exploit the error only if it knows
addresses. A worker that dies is replaced by a clone of the same pool, with the same addresses: so
each death is a guess, and without a limit a guest can guess as fast as workers are created. The
pools of a sandbox are clones of its holder and have the same addresses too, so they share a budget.

What is counted. Deaths by the signals of GUESSES, in all slots together, since all workers have the
addresses of the pool. Not counted: SIGKILL, which the operator sends, or the kernel when memory is
short, and exits with a status, which come from Python exceptions. A single death by SIGSYS is
enough: an honest worker makes no forbidden call, so a worker that makes one has been taken over.

What follows. The slot stays empty while the sandbox lives, so its rings stop; the rings of other
slots are still served. If a worker of another slot faults in the same hour, that slot also stays
empty. A VMM that connects again gets a new sandbox with a new budget and, after a fault, with new
addresses (template.py); only the VMM can do that, not its guest.

What it is worth. With the default of 10 in an hour a guest has 10 guesses at once, one more for
each slot, and 240 a day if it is patient. On x86-64 the addresses of libraries have 28 random bits:
240 guesses have a chance of one in a million a day, and each guess leaves a line in the log. The
stack protector's canary cannot be learnt byte by byte, since each worker has its own canary
(clone_process.c), and its 56 bits are too many to be guessed at once.

Why a new worker does not get new addresses. Only exec gives new addresses, and an exec'd process
would have to get three things from the pool: the fd table that all workers share (an fd keeps its
number and its file for as long as the guest has the file open), the mounts of a sandbox that no
path leads to, and the mappings. So it would have to be a second sandbox, isolated like the first.
A sandbox that was lost is replaced in this way under a running guest (the supervisor's
rebuilding.py). That is not done for a sandbox that still serves, because some files are lost by it,
and slots that have ended stay ended.

Requests. A request that was in flight at two faults is answered with EIO (intent.h), so a request
that crashes its worker makes two guesses and not all of them. For this purpose more ends of a
worker are faults (is_fault): an exit with a status, and a kill on the supervisor's order, which
follows if a worker hangs. SIGKILL and SIGTERM come from outside. A request is innocent of them, and
runs again each time.

Where the reason of a death is known. The holder reaps the worker and keeps its wait status
(pool_memory.py), so the reason outlives the pool. The pool writes the reason into the worker table
before it fills the slot again. When a whole sandbox is lost, the kernel has killed its workers
together with the holder, and how a worker would have ended is not known: no request is blamed. The
other choice would fail innocent requests whenever a sandbox is lost twice in a row.

A request by which the kernel kills the worker because memory is short. This budget does not limit
the request, since such a death shows nothing about addresses. No count of deaths limits the request
either, since nothing distinguishes it from an innocent request. The limit is the pause of the slot
(pool_state.py): a worker that lives for less than SHORT_LIFE is followed after a pause, which grows
up to LONGEST_PAUSE, or to 40 ms if the worker has finished another request. So the request runs
about once in a second, and 25 times in a second at most. The guest gains nothing by that: it can
send the request again as often, without any death. If the
kernel kills the holder instead, the pause between two sandboxes is the limit (rebuilding.py).
"""

import signal
from collections import deque
from collections.abc import Iterable
from typing import Final

from vfsd.transport.control_messages import OUTSIDE

GUESSES: Final = frozenset(
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


def is_fault(code: int) -> bool:
    """A worker that served ended with `code` (negative: by that signal). May a request have caused
    that?"""
    return code != 0 and -code not in OUTSIDE


class FaultBudget:
    """The faults of one sandbox's workers. `limit`: the number of faults in an hour after which a
    worker is still created again; 0: any number."""

    def __init__(self, limit: int, times: Iterable[float] = ()) -> None:
        self._limit = limit
        self.times: deque[float] = deque(times)  # time.monotonic

    def why_not_again(self, code: int, now: float) -> str | None:
        """A worker ended with `code` (negative: by that signal) at `now` (time.monotonic). Return
        the reason why the worker must not be created again, or None if it may."""
        if -code == signal.SIGSYS:
            return "it made a system call that workers never make (SIGSYS)"
        if -code not in GUESSES:
            return None
        while self.times and now - self.times[0] >= WINDOW_SECONDS:
            self.times.popleft()
        self.times.append(now)
        if self._limit and len(self.times) > self._limit:
            self.times.popleft()  # only the latest `limit` faults count
            return f"workers died of more than {self._limit} faults within an hour"
        return None
