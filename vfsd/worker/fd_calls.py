# SPDX-License-Identifier: Apache-2.0
"""Small calls on fds that the pool makes in several places."""

import os
import select
from collections.abc import Iterable
from contextlib import suppress


def wait_readable(
    fds: Iterable[int], seconds: float | None, ending: Iterable[int] = ()
) -> set[int]:
    """Wait up to `seconds` (None: without a limit); returns the fds of `fds` that can be read or
    are closed, and the fds of `ending` whose other end is closed."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    for fd in ending:
        poll.register(fd, 0)
    milliseconds = None if seconds is None else max(0, int(seconds * 1000) + 1)
    return {fd for fd, _ in poll.poll(milliseconds)}


def drain(eventfd: int) -> None:
    """Reset an eventfd that does not block."""
    with suppress(BlockingIOError):
        os.eventfd_read(eventfd)


def close_if_open(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)
