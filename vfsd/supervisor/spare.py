# SPDX-License-Identifier: Apache-2.0
"""The pool of the next VMM, which is made before it is needed.

THEORY

Purpose. The start of a pool is the start of a Python program, which then isolates itself: some
100 ms of CPU. A VMM that connects again after a reboot of its guest would wait for that, and so
would QEMU's main loop. So with --keep-listening there is a spare pool: a pool without workers,
fds and guest. A pool serves one VMM. No spare pool has ever served one.

When. While a VMM is served, the start waits until that VMM has sent no message for QUIET_SECONDS:
it would take the CPU from a guest that boots. While no VMM is connected, the start begins at once,
and need not be complete before the next VMM may connect: only a vring that starts needs a pool.

Failure. Everything that goes wrong with a spare pool stays in here. A pool that dies is replaced
after a pause, which grows from PAUSE_FIRST to PAUSE_MAX, and a line is logged each time that the
pause grows. A pool that take() has returned is not a spare any more: its errors reach the caller.
If the VMM goes away while there is no spare pool, an error of the next start ends the daemon, as at
the start of the daemon. If the supervisor dies, its successor does not know the spare pool. It
closes the supervisor's end of the pool's channel (resume.py), so that pool ends, and another is
made in its place.
"""

import math
from collections.abc import Callable
from time import monotonic
from typing import Final, NoReturn

from vfsd.supervisor.backend import BackendContext
from vfsd.supervisor.descendants import Process, await_end, has_ended
from vfsd.supervisor.growing_pause import GrowingPause
from vfsd.supervisor.launcher import ANSWER_SECONDS
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.pool_client import PoolClient
from vfsd.transport.errors import OperatorError

QUIET_SECONDS: Final = 1.0
PAUSE_FIRST: Final = 1.0  # seconds
PAUSE_MAX: Final = 60.0
# How long a VMM that is served may have to wait because of the start of a spare pool.
BUSY_SECONDS: Final = 1.0
FORMER_SECONDS: Final = 5.0  # for which processes of the VMM before are waited for
PREFIXES: Final = ("a", "b")  # of the names of sockets: two pools live at the same time


class Spare:
    """At most one pool that no VMM uses yet. `context` makes the context of the next pool.
    `is_wanted`: may another VMM come?"""

    def __init__(
        self, context: Callable[[], BackendContext], log: LogCollector, is_wanted: bool
    ) -> None:
        self._context = context
        self._log = log
        self._is_wanted = is_wanted
        self._prefix, self._other_prefix = PREFIXES
        self._former: list[Process] = []
        self._pool: PoolClient | None = None
        self._due = math.inf  # time.monotonic, of the next start
        self._pause = GrowingPause(PAUSE_FIRST, PAUSE_MAX)
        self._has_failed = False  # the last start or pool: the next start waits for its pause

    def want(self) -> None:
        """A VMM is at work: start a pool when the VMM has been quiet for a while."""
        if self._is_wanted and not self._has_failed:
            self._due = monotonic() + QUIET_SECONDS

    def has_pool(self) -> bool:
        """Is there a pool that starts or has started?"""
        return self._pool is not None

    def replace(self, processes: list[Process]) -> None:
        """A VMM has gone, and these processes of its pool were killed: start a pool for the next
        VMM now, unless there is one. The next take() waits for the end of the processes, since they
        may have locks, which the next guest must not meet."""
        self._former = processes
        if self._is_wanted and not self._pool and not self._has_failed:
            self._try_to_start(ANSWER_SECONDS)

    def take(self) -> PoolClient:
        """A pool that has started: the spare pool, or else a new pool. OperatorError if it cannot
        be started."""
        pool, self._pool, self._due = self._pool, None, math.inf
        pool = pool or self._start(ANSWER_SECONDS)
        pool.on_loss = _raise
        try:
            pool.await_ready()
        except BaseException:
            pool.kill()
            raise
        self._pause.reset()
        self._has_failed = False
        self._await_former()
        self.live_beside(pool)
        return pool

    def live_beside(self, pool: PoolClient) -> None:
        """Use other names of sockets for the next pool than this pool has."""
        if pool.has_prefix(self._prefix):
            self._prefix, self._other_prefix = self._other_prefix, self._prefix

    def _await_former(self) -> None:
        former, self._former = self._former, []
        await_end(former, FORMER_SECONDS)
        if left := [process for process in former if not has_ended(process)]:
            names = ", ".join(map(str, left))
            text = f"killed with the VMM before and still there, maybe with locks: {names}"
            self._log.write("warn", text)

    def kill(self) -> None:
        """Kill the pool, if there is one, and start no other."""
        pool, self._pool, self._due = self._pool, None, math.inf
        if pool:
            pool.kill()

    def turn(self) -> float:
        """Start a pool if that is due; returns the seconds until then. The event loop calls this in
        each turn."""
        if not self._pool and self._due <= monotonic():
            self._try_to_start(BUSY_SECONDS)
        return math.inf if self._pool else max(0.0, self._due - monotonic())

    def _try_to_start(self, seconds: float) -> None:
        self._due = math.inf
        try:
            self._pool = self._start(seconds)
        except OperatorError as error:
            self._fail(error)
        else:
            self._pool.on_loss = self._lose
            self._has_failed = False

    def _start(self, seconds: float) -> PoolClient:
        made = self._context()
        return PoolClient.begin(
            made.loop,
            made.log,
            made.launcher,
            made.options,
            made.device.fd,
            made.patience,
            self._prefix,
            seconds,
        )

    def _lose(self, error: Exception) -> None:
        self.kill()
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        pause = self._pause.next()
        self._due = monotonic() + pause
        self._has_failed = True
        if self._pause.grew:
            text = f"no spare pool for the next VMM: {error}; trying again in {pause:.0f} s"
            self._log.write("warn", text)


def _raise(error: Exception) -> NoReturn:
    raise error
