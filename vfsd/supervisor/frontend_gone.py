# SPDX-License-Identifier: Apache-2.0
"""Why a front-end is no longer served, and the exit status of the daemon in that case."""

import select


class FrontendGoneError(Exception):
    """The front-end closed the connection, or was disconnected.

    `status`: the exit status of a daemon that serves no other front-end. It is not 0 after a
    disconnection, so that a service manager with Restart=on-failure starts the daemon again.
    """

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


def went_away(how: str = "") -> FrontendGoneError:
    return FrontendGoneError(f"the VMM went away{how}", 0)


def disconnected(reason: object) -> FrontendGoneError:
    return FrontendGoneError(f"disconnected the VMM: {reason}", 1)


def check(fd: int) -> None:
    """Raise FrontendGoneError if the VMM closed its end, even if messages are still unread."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    if poll.poll(0):
        raise went_away(" while the sandbox was slow")
