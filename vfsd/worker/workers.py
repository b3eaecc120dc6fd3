# SPDX-License-Identifier: Apache-2.0
"""The life and death of workers, in the pool.

A worker that dies is replaced at once: its locks are released, its own sockets and eventfds are
closed, so that zmq's peer notices the death, and its slot is filled again. If workers of a slot die
again and again soon after their start, the slot waits longer each time, but not long if they serve
requests and are killed from outside. After too many faults, or a
forbidden system call, the slot stays empty (fault_budget.py).

Workers, and the processes that close files, are children of the holder, whichever pool creates
them (clone_sibling): so the death of a pool changes nothing for them. The holder reaps them and
writes down their deaths (pool_memory.py).

Death. A worker is created in three steps: note in the record which slot is being filled; clone, by
which the kernel writes the pid into the shared memory; note the pid in the record. A pool that
finds the note without a pid in the record looks for the pid in the shared memory. What a pool does
after the death of a worker has the same result when another pool does it a second time; the death
counts as acted on when the record says so, which is saved last.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NoReturn

from vfsd.transport.control_messages import Content
from vfsd.transport.errors import describe
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.process_title import setproctitle
from vfsd.worker import queue_worker, seccomp
from vfsd.worker.descriptors import anonymous
from vfsd.worker.fault_budget import is_fault
from vfsd.worker.fd_calls import close_if_open, drain, wait_readable
from vfsd.worker.fd_owners import FdOwners
from vfsd.worker.inheritance import Inheritance
from vfsd.worker.log_forward import LogForward
from vfsd.worker.pool_memory import PoolMemory
from vfsd.worker.pool_state import CLOSER, LONGEST_PAUSE, PoolState, Slot
from vfsd.worker.sweep import Sweep

HALT_SECONDS: Final = 2.0  # for the end of all workers
START_SECONDS: Final = 60.0  # a worker that has not started by then hangs, and is killed


class Workers:
    """`save` puts the state into the record; `send` sends an event without waiting."""

    def __init__(
        self,
        inherited: Inheritance,
        state: PoolState,
        save: Callable[[], None],
        send: Callable[[Content], bool],
        log: LogForward,
    ) -> None:
        self._inherited = inherited
        self._memory = inherited.memory
        self._tables = inherited.tables
        self._state = state
        self._save = save
        self._send = send
        self._log = log
        self._owners = FdOwners(inherited, state)
        self._has_strangers = False
        self._sweep = Sweep(
            inherited.tables,
            inherited.job.slots,
            inherited.sandbox.proc_fd,
            self._owners.not_in_tables,
            self._close_elsewhere,
        )

    def take_over(self) -> None:
        """Go on where a pool died. No worker notices it."""
        self._settle_newborn()
        for index, slot in enumerate(self._state.slots):
            if slot.is_starting:
                self._finish_start(index)
        self._sweep.begin()
        self._has_strangers = True
        os.eventfd_write(self._memory.reaped, 1)  # look for deaths

    def _settle_newborn(self) -> None:
        """If a pool died while it created a process, give the process its place."""
        state, pid = self._state, int(self._memory.newborn()[0])
        if state.newborn is not None and pid:
            self._place_newborn(pid)
        elif state.newborn is not None and state.newborn != CLOSER:
            state.slots[state.newborn].before = None
            state.slots[state.newborn].respawn_at = time.monotonic()
        state.newborn = None
        self._save()

    def _place_newborn(self, pid: int) -> None:
        state = self._state
        if state.newborn == CLOSER:
            state.closers[pid] = state.closing
        elif state.newborn is not None:
            slot = state.slots[state.newborn]
            slot.pid, slot.born, slot.respawn_at = pid, time.monotonic(), None
        state.newborn, state.closing = None, set()

    def turn(self) -> None:
        """Act on the deaths since the last turn, and on what is due."""
        for number, pid, status in self._memory.deaths_since(self._state.deaths_seen):
            try:
                self._act_on_death(pid, status)
            finally:  # after an error here another attempt would fail as well
                self._state.deaths_seen = number + 1
                self._save()
        self._close_strangers()
        self._respawn_due()
        if orphans := self._sweep.look_if_due():
            self._log.debug(f"{orphans} files that a dead worker had left open were closed")

    def _close_strangers(self) -> None:
        """Close what another pool has left open, as soon as no worker is starting."""
        is_starting = any(slot.is_starting for slot in self._state.slots)
        if self._has_strangers and not is_starting:
            self._has_strangers = False
            for fd in self._owners.strangers():
                close_if_open(fd)

    def seconds_left(self) -> float | None:
        """Seconds until a worker or a look for orphans is due; None if neither is."""
        slots = () if self._state.is_halted else self._state.slots
        times = [self._sweep.due, *(slot.respawn_at for slot in slots)]
        due = [at for at in times if at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def kill_all(self) -> None:
        pids = [slot.pid for slot in self._state.slots if slot.pid]
        for pid in [*pids, *self._state.closers]:
            with suppress(ProcessLookupError):  # the holder has reaped it
                os.kill(pid, signal.SIGKILL)

    def kill(self, index: int) -> None:
        """Kill the worker of a slot; that worker is then replaced like any other dead worker."""
        slot = self._state.slots[index]
        if slot.pid:
            slot.is_condemned = True
            self._save()
            with suppress(ProcessLookupError):
                os.kill(slot.pid, signal.SIGKILL)

    def halt(self) -> bool:
        """Kill all workers, and create none until resume(): another sandbox is to take the place of
        this one. False if a worker does not end, because a file system hangs. What is in flight
        stays in the records of the rings, as after any death."""
        self._state.is_halted = True
        self._save()
        deadline = time.monotonic() + HALT_SECONDS
        self.kill_all()
        while any(slot.pid for slot in self._state.slots):
            if (left := deadline - time.monotonic()) <= 0:
                return False
            wait_readable((self._memory.reaped,), left)
            drain(self._memory.reaped)
            self.turn()
        return True

    def resume(self) -> None:
        """Create the workers again that were killed by halt()."""
        self._state.is_halted = False
        for slot in self._state.slots:
            if slot.respawn_at is not None:
                slot.respawn_at = time.monotonic()
        self._save()

    # Creation.

    def spawn(self, index: int) -> None:
        """Create the worker of a slot and wait until it has started (or died)."""
        slot = self._state.slots[index]
        slot.before, slot.private = anonymous(self._owners.open_now()), {}
        slot.served = self._served(index)
        drain(self._memory.started)
        inherited = self._inherited
        started = self._memory.started
        place = queue_worker.Place(inherited.job, inherited.sandbox, self._tables, index, started)
        self._create(index, partial(_live_as_worker, place, self._memory))
        self._finish_start(index)

    def _create(self, newborn: int, run: Callable[[], NoReturn]) -> None:
        """Create a process that calls `run`; see Death."""
        pid = self._memory.newborn()
        pid[0] = 0
        self._state.newborn = newborn
        self._save()
        try:
            if check(lib.clone_sibling(pid)) == 0:
                lib.clone_process_run(ffi.cast("void *", id(run)))
        except OSError:
            self._state.newborn = None
            raise
        self._place_newborn(int(pid[0]))
        self._save()

    def _finish_start(self, index: int) -> None:
        slot = self._state.slots[index]
        if slot.before is not None and self._await_start(index):
            slot.private = self._owners.new_since(slot.before, self._owners.open_now(), index)
            slot.before = None
            self._save()
        os.eventfd_write(self._memory.reaped, 1)  # act on deaths during the wait

    def _await_start(self, index: int) -> bool:
        """Wait until the worker has filled in its row in the worker table, after which it writes an
        eventfd. Return: has the worker started?"""
        slot, row = self._state.slots[index], self._tables.workers.rows[index]
        deadline = slot.born + START_SECONDS
        while row.pid != slot.pid:
            if self._has_died(slot.pid):
                return False
            fds = (self._memory.started, self._memory.reaped)
            ready = wait_readable(fds, deadline - time.monotonic())
            for fd in ready:
                drain(fd)
            if not ready and time.monotonic() > deadline:
                self._log.error(f"a worker did not start in {START_SECONDS:.0f} s and is killed")
                self.kill(index)
                return False
        return True

    def _has_died(self, pid: int) -> bool:
        deaths = self._memory.deaths_since(self._state.deaths_seen)
        return any(dead == pid for _, dead, _ in deaths)

    def _respawn_due(self) -> None:
        now = time.monotonic()
        for index, slot in enumerate(() if self._state.is_halted else self._state.slots):
            if slot.respawn_at is None or slot.respawn_at > now:
                continue
            slot.respawn_at = None
            try:
                self.spawn(index)
            except OSError as error:
                slot.respawn_at = now + LONGEST_PAUSE
                self._log.error(f"cannot create worker {index}: {error.strerror}; trying again")

    # Death.

    def _served(self, index: int) -> int:
        """The number of requests that all workers of a slot have finished."""
        return sum(op.count for op in self._tables.workers.rows[index].ops)

    def _act_on_death(self, pid: int, status: int) -> None:
        self._state.closers.pop(pid, None)
        for index, slot in enumerate(self._state.slots):
            if slot.pid == pid:
                self._bury(index, slot, os.waitstatus_to_exitcode(status))

    def _bury(self, index: int, slot: Slot, code: int) -> None:
        """A worker died: release what it held, and have its slot filled again."""
        pid = slot.pid
        may_be_deadly = slot.is_condemned or is_fault(code)
        if slot.before is None:  # else the worker has not begun to serve
            self._tables.workers.rows[index].faulted = may_be_deadly
        slot.note_death(time.monotonic(), self._served(index), may_be_deadly)
        why_not_again = self._state.faults.why_not_again(code, time.monotonic())
        slot.is_ended = why_not_again is not None
        again = code != queue_worker.EXIT_STOPPED and not slot.is_ended
        try:
            for fd in self._owners.left_behind(index, pid):
                close_if_open(fd)
            slot.before, slot.private = None, {}
        finally:  # even after an error here the queue must be served again
            self._tables.bury(index)
            self._sweep.begin()
            if again:
                slot.respawn_at = time.monotonic() + slot.pause.seconds
        how = {"signal": -code} if code < 0 else {"status": code}
        if not self._state.is_halted or not again:
            self._send({"event": "worker-died", "slot": index, "respawned": again, **how})
        if why_not_again:
            self._log.error(f"worker {index} is not created again: {why_not_again}")

    def _close_elsewhere(self, fds: set[int]) -> None:
        """Close files of the share in a process of its own: a close may call the file system, and a
        file system that hangs then holds up only that process. No other process closes these fds
        while it runs. If the process is killed, the fds that are left are found after the next
        death of a worker."""
        self._state.closing = fds
        self._create(CLOSER, partial(_close_files, self._inherited.job.name, fds))


def _live_as_worker(place: queue_worker.Place, memory: PoolMemory) -> NoReturn:
    status = queue_worker.EXIT_FAILED
    try:
        memory.unmap()
        own_socket = place.sandbox.handles.socket_of(place.slot)
        seccomp.confine_worker(place.sandbox.worker_filter, own_socket)
        status = queue_worker.run(place)
    except BaseException as error:
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(2, f"vfsd: worker {place.slot}: {describe(error)}\n".encode())
    finally:
        os._exit(status)


def _close_files(name: str, fds: set[int]) -> NoReturn:
    """Run as the process that closes files: it shares the fd table, so an fd that it closes is
    closed for all."""
    try:
        setproctitle(f"vfsd: {name} closing files")
        for fd in fds:
            close_if_open(fd)
    finally:
        os._exit(0)
