# SPDX-License-Identifier: Apache-2.0
"""Builds another sandbox in the place of a sandbox whose holder died, while a guest has a session.

THEORY

Purpose. When the holder dies, every fd of the share is gone. The tables of the session are in
segments that the supervisor holds. So another sandbox is started, which is given the old tables
beside its own, and fills its own from them (vfsd/worker/restoration.py). The VMM does not notice;
the guest's requests wait.

Two sandboxes never serve at the same time. Without a pid namespace pool and workers outlive the
holder, so they are killed, and no sandbox is started before the last of them has ended. A worker
that waits for a file system in the kernel ends only when the file system answers.

Trust. The old tables were writable by a sandbox that may have been taken over. The supervisor does
not look at them: it passes their fds on, and only a process inside of a sandbox reads them.

Failure. Nothing is given up while the VMM is connected: a share that is unmounted may be mounted
again. The pauses between two attempts grow. Slots that had ended stay ended: a guest cannot get
back, by the death of its sandbox, what its worker had lost by a forbidden system call.

Death of the supervisor. The lost pool is part of the saved state until another pool has taken its
place, and so are the effects of the message that was being handled. The successor kills what the
dead supervisor had begun, and begins again; the old tables are as they were.
"""

import time
from typing import Final

from vfsd.supervisor.backend import Backend, BackendContext
from vfsd.supervisor.launcher_requests import LauncherGoneError
from vfsd.supervisor.patience import CHECK_SECONDS
from vfsd.supervisor.pool_errors import PoolDiedError
from vfsd.supervisor.restart_policy import GrowingPause, RestartPolicy
from vfsd.supervisor.saved_state import LostPool
from vfsd.supervisor.siblings import Siblings
from vfsd.transport.errors import OperatorError

LOOK_SECONDS: Final = 0.01  # between two looks at processes that end
SLOW_SECONDS: Final = 10.0
FAILURE_PAUSE_MAX: Final = 30.0  # between two attempts


def rebuild(
    context: BackendContext, lost: LostPool, siblings: Siblings, pause: GrowingPause
) -> Backend:
    """Start a pool in which the session of `lost` goes on. Attempts are repeated until one succeeds
    or context.patience.give_up() raises; OperatorError if --give-up-after ends them. `pause` grows
    if sandboxes are lost again and again."""
    _await_end(context, siblings)
    _rest(context, pause.next(time.monotonic()))
    policy = RestartPolicy(context.options.give_up_after)
    after_failure = GrowingPause(FAILURE_PAUSE_MAX)
    after_failure.next(time.monotonic())
    while True:
        try:
            return Backend.start(context, lost)
        except (LauncherGoneError, OperatorError, PoolDiedError) as error:
            if policy.after_death(time.monotonic()) is None:
                raise OperatorError(f"{error}; {policy.surrender('the sandbox')}") from None
            context.log.write("error", f"no other sandbox could be built: {error}; trying again")
        _rest(context, after_failure.next(time.monotonic()))
        _await_end(context, siblings)


def _await_end(context: BackendContext, siblings: Siblings) -> None:
    """Kill what lives of the sandbox, and wait until it has ended."""
    start, is_slow = time.monotonic(), False
    siblings.kill()
    while left := siblings.alive():
        if not is_slow and time.monotonic() - start > SLOW_SECONDS:
            is_slow = True
            what = "the end of the processes of the lost sandbox"
            context.patience.report(what, left[0].pid, SLOW_SECONDS)
        _rest(context, LOOK_SECONDS)


def _rest(context: BackendContext, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        context.patience.give_up()
        context.loop.wait(lambda: False, min(left, CHECK_SECONDS))
