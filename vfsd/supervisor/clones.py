# SPDX-License-Identifier: Apache-2.0
"""Clones of this process that share its fd table, each of which begins a role of its own.

THEORY

Purpose. Keeper and supervisor create each other, so a supervisor becomes the origin of a keeper,
that keeper the origin of a supervisor, and so on without end. A clone has the stack and all objects
of its origin. If it ran its role on top of that stack, stack and memory would grow from death to
death.

create() therefore raises NewRole in the clone. The exception unwinds the stack to run(), which was
called at the start of the first process, and everything that only the origin needed is freed.

Invariants. Origin and clone share one fd table, so the clone must close nothing while it unwinds.
It forgets the fds of its sockets first, except for `kept`, and those of other Owners; no other
object of keeper and supervisor closes an fd when it is freed (the event loop uses poll(2), which
has no fd). NewRole is not an Exception, so the handlers of errors on the way do not see it. What
runs in a `finally` on the way must be harmless in the clone: it may change memory, and not an fd, a
file or a process.
"""

import gc
import socket
from collections.abc import Callable, Container

from vfsd.transport.native import check, lib

Role = Callable[[], int]  # returns the exit status of the program


class Owner:
    """An object that would close an fd when it is freed."""

    def forget(self) -> None:
        """Give the fd up without closing it."""
        raise NotImplementedError


class NewRole(BaseException):
    """Raised in a clone, for run() only."""

    def __init__(self, role: Role) -> None:
        super().__init__()
        self.role = role


def create(role: Role, kept: Container[int] | None = None) -> int:
    """Clone this process; returns the pid of the clone, which runs `role`. OSError if the process
    cannot be cloned. `kept`: the fds of the sockets that the clone uses; None: of all sockets."""
    pid = check(lib.clone_process())
    if pid:
        lib.process_forget_code()  # give back the memory of code that only the start needed
        return int(pid)
    if kept is not None:
        _forget_fds(kept)
    raise NewRole(role)


def create_apart(role: Role) -> int:
    """As create(), but the clone has an fd table of its own, so it may close what it inherits."""
    pid = check(lib.clone_apart())
    if pid:
        return int(pid)
    raise NewRole(role)


def _forget_fds(kept: Container[int]) -> None:
    for thing in gc.get_objects():
        if issubclass(type(thing), Owner):
            thing.forget()
        elif issubclass(type(thing), socket.socket) and thing.fileno() not in kept:
            thing.detach()


def run(role: Role) -> int:
    """Run `role`, or in a clone the role that the clone was created for."""
    while True:
        try:
            return role()
        except NewRole as new:
            role = new.role
