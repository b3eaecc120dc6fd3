# SPDX-License-Identifier: Apache-2.0
"""Has the launcher start the first process of a pool, and waits for that in the event loop: on a
slow host the template of the pools takes any time to start, and signals must be seen until then."""

from collections.abc import Callable, Sequence
from typing import Final

from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.launcher_requests import LauncherDiedError, LauncherGoneError
from vfsd.supervisor.pool_errors import PoolDiedError, StartLostError

FAILED: Final = "cannot start a pool of workers"
Wait = Callable[[Callable[[], bool]], None]


def start_first(
    launcher: Launcher,
    fds: Sequence[int],
    loop: EventLoop,
    wait: Wait,
) -> int:
    """Start the first process of a pool with `fds`; returns its pidfd, which the caller owns.
    `wait` turns the event loop until a condition holds. Raises PoolDiedError if the process could
    not be started, LauncherGoneError if there is no launcher, and what `wait` raises."""
    try:
        return _start(launcher, fds, loop, wait)
    except LauncherGoneError as error:
        raise LauncherGoneError(f"{FAILED}: {error}") from None
    except LauncherDiedError as error:
        raise StartLostError(f"{FAILED}: {error.strerror}") from None
    except OSError as error:
        raise PoolDiedError(f"{FAILED}: {error}") from None


def _start(launcher: Launcher, fds: Sequence[int], loop: EventLoop, wait: Wait) -> int:
    number = launcher.start_pool(fds)
    found: list[int] = []

    def is_there() -> bool:
        if (first := launcher.first_process(number)) is not None:
            found.append(first)
        return bool(found)

    loop.register(launcher.fd, lambda: None)
    try:
        wait(is_there)
    finally:
        loop.unregister(launcher.fd)
        launcher.forget(number)
    return found[0]
