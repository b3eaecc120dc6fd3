# SPDX-License-Identifier: Apache-2.0
"""Waits for the first process of a pool in the event loop: on a slow host the template of the pools
takes any time to start, and signals must be seen until then.

A keeper may be cloned during the wait. So nothing here is closed in a `finally`; see clones.py.
"""

from collections.abc import Callable

from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.launcher import Launcher


def await_first(
    launcher: Launcher,
    number: int,
    loop: EventLoop,
    wait: Callable[[Callable[[], bool]], None],
) -> int:
    """Wait for the first process of the pool that was asked for with this number; returns its
    pidfd, which the caller owns. `wait` turns the event loop until a condition holds. Raises
    OSError if the process could not be started, LauncherGoneError if there is no launcher, and what
    `wait` raises."""
    found: list[int] = []

    def is_there() -> bool:
        if (first := launcher.first_process(number)) is not None:
            found.append(first)
        return bool(found)

    loop.register(launcher.fd, lambda: None)
    try:
        wait(is_there)
    except Exception:
        loop.unregister(launcher.fd)
        launcher.forget(number)
        raise
    loop.unregister(launcher.fd)
    return found[0]
