# SPDX-License-Identifier: Apache-2.0
"""The holder: the first process of the sandbox, kept so simple that it does not crash.

THEORY

Purpose. The files that the guest has open are in the fd table of the sandbox, which lives as long
as a process that shares it. A pool can crash or be killed. So another process holds the table, and
creates another pool when a pool dies, while the workers go on serving.

What it does. It isolates itself (isolation.py), prepares the shared tables, and creates a pool.
From then on it waits for the end of its children, which are the pool, the workers, the processes
that close files, and the guard of the broker. It writes down what ended (pool_memory.py), so that
the pool may act, and creates another pool if the pool ended. It reads no input at all.

Pools that die soon after their start are created after a growing pause, and for ever.

The end. A pool that has lost its channel to the supervisor ends with EXIT_ENDED, and the holder
ends as well. In a pid namespace the kernel then kills every process that is left. If the holder
dies, every file that the guest has open is lost.
"""

import os
import signal
import time
from functools import partial
from typing import Final

from vfsd.transport.ending_signals import ENDING
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.process_title import setproctitle
from vfsd.worker import pool
from vfsd.worker.inheritance import Inheritance
from vfsd.worker.pause import Pause

LONGEST_PAUSE: Final = 2.0  # seconds before the next pool
SHORT_LIFE: Final = 0.1  # seconds, of a pool
NOT_CREATED: Final = 1  # instead of a status


class Holder:
    """run() returns when the sandbox is to end."""

    def __init__(self, inherited: Inheritance) -> None:
        self._inherited = inherited
        self._pause = Pause(LONGEST_PAUSE, SHORT_LIFE)

    def run(self) -> None:
        setproctitle(f"vfsd: {self._inherited.job.name} holder")
        _handle_signals()
        ended = self._hold(None)
        while ended != pool.EXIT_ENDED:
            time.sleep(self._pause.seconds)
            ended = self._hold(ended)

    def _hold(self, ended: int | None) -> int:
        """Create a pool and wait for its end; returns its exit code. `ended`: that of the pool
        before, None if this pool is the first."""
        born = time.monotonic()
        pid = self._create(ended)
        code = self._await_end(pid) if pid else NOT_CREATED
        self._pause.note_life(time.monotonic() - born)
        return code

    def _create(self, ended: int | None) -> int:
        """Create a pool; returns its pid, 0 if it cannot be created for now."""
        run = partial(pool.live, self._inherited, ended)
        try:
            with self._inherited.sandbox.oom_score.raised():
                pid = check(lib.clone_process())
                if pid == 0:
                    lib.clone_process_run(ffi.cast("void *", id(run)))
                return pid
        except OSError as error:
            os.write(2, f"vfsd: no pool can be created: {error.strerror}\n".encode())
            return 0

    def _await_end(self, pool_pid: int) -> int:
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == pool_pid:
                return os.waitstatus_to_exitcode(status)
            self._inherited.memory.note_death(pid, status)


def _handle_signals() -> None:
    """Ignore the signals that a terminal or service manager sends to the whole group: the keeper
    answers them. Pools inherit that."""
    for ignored in ENDING:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # our starter may have blocked signals
