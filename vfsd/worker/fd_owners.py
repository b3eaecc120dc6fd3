# SPDX-License-Identifier: Apache-2.0
"""Who owns each fd of the sandbox: the pool, the supervisor, a worker, a table, or nobody?

Number and link in /proc together say which process an fd belongs to (descriptors.py): the number
alone is not enough, because the owner may have closed the fd and the number may be a file of the
guest now. No fd that is in a shared table is ever named here.
"""

from vfsd.worker.descriptors import anonymous, bound_name, is_fd_folder, outside_tables
from vfsd.worker.inheritance import Inheritance
from vfsd.worker.pool_state import PoolState


class FdOwners:
    def __init__(self, inherited: Inheritance, state: PoolState) -> None:
        self._inherited = inherited
        self._tables = inherited.tables
        self._state = state
        self._listeners = [bound_name(fd) for fd in inherited.job.fds.listeners]
        self._own = inherited.fds()

    def open_now(self) -> dict[int, str]:
        """The open fds that are in no shared table, as outside_tables()."""
        return outside_tables(self._inherited.sandbox.proc_fd, self._tables)

    def left_behind(self, index: int, pid: int) -> set[int]:
        """The fds of a dead worker: those that were its own at the start, the connections that it
        accepted later, and, if the worker died while it started, all that appeared since its
        birth."""
        slot, now = self._state.slots[index], self.open_now()
        ours = self._listeners[index]
        left = {fd for fd in anonymous(now) if bound_name(fd) == ours}
        left |= {fd for fd, link in slot.private.items() if now.get(fd) == link}
        left |= {fd for fd in self._claimed(index) if is_fd_folder(now.get(fd, ""), pid)}
        if slot.before is not None:
            left |= self.new_since(slot.before, now, index).keys()
        return left - self._own - self._state.adopted

    def new_since(self, before: dict[int, str], now: dict[int, str], index: int) -> dict[int, str]:
        """The fds that zmq and C opened for the worker of a slot: all new fds, except those of
        another worker and a connection that another worker has just accepted."""
        ours = self._listeners[index]
        return {
            fd: link
            for fd, link in anonymous(now).items()
            if before.get(fd) != link
            and bound_name(fd) in (None, "", ours)
            and not self._is_private(fd, link, index)
        }

    def not_in_tables(self) -> set[int]:
        """Every fd that no op has opened: the fds of the pool, the adopted fds, the fds of living
        workers, and the fds that are being closed."""
        claimed = (self._claimed(index) for index in range(len(self._state.slots)))
        own = self._own | self._state.adopted | anonymous(self.open_now()).keys()
        return set(own).union(*claimed, *self._state.closers.values())

    def strangers(self) -> set[int]:
        """The sockets and eventfds that belong to no process: a pool died after it had received
        them, or before it had closed them. Call this while no worker starts."""
        known = self._own | self._state.adopted
        return {
            fd
            for fd, link in anonymous(self.open_now()).items()
            if fd not in known
            and not self._is_private(fd, link)
            and bound_name(fd) not in self._listeners
        }

    def _is_private(self, fd: int, link: str, but: int | None = None) -> bool:
        """Is this the own fd of a worker, except of the worker of slot `but`?"""
        slots = enumerate(self._state.slots)
        return any(slot.private.get(fd) == link for index, slot in slots if index != but)

    def _claimed(self, index: int) -> set[int]:
        """The private fd that a worker has written into its row. A worker is not trusted, so no fd
        is closed only because a row names it."""
        row = self._tables.workers.rows[index]
        return {row.private_fds[0]} if row.private_fd_count else set()
