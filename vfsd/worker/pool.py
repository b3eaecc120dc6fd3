# SPDX-License-Identifier: Apache-2.0
"""The pool: keeps the sandboxed fd table alive, creates the workers, and cleans up after dead
workers.

The pool must be too simple to crash: if it dies, every fd of the share is lost, and the guest waits
until another sandbox is built (restoration.py). So the pool reads no guest memory, starts no
thread, waits for no process except a worker that starts, and never calls a file system of the share
(a file system that hangs would hold up every queue). It takes orders only from the fd channel:
adopt fds, drop fds, spawn or kill a worker. When that channel closes, keeper and supervisor are
both dead, and the pool ends, and its workers with it.

A worker that dies is replaced at once: its locks are released, its own sockets and eventfds are
closed, so that zmq's peer notices the death, and its slot is filled again. If workers of a slot die
again and again soon after their start, the slot waits longer each time. After too many faults, or a
forbidden system call, the slot stays empty (fault_budget.py).

Number and link in /proc together say which process an fd belongs to (descriptors.py): the number
alone is not enough, because the owner may have closed the fd and the number may be a file of the
guest now. The pool never closes an fd that is in a shared table.
"""

import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn

from vfsd.transport.control_messages import Content, number
from vfsd.transport.ending_signals import ENDING
from vfsd.transport.errors import ProtocolError, describe
from vfsd.transport.fd_channel import FdChannel, Packet
from vfsd.transport.job import Job
from vfsd.transport.native import check, ffi, lib
from vfsd.transport.process_title import setproctitle
from vfsd.worker import queue_worker, seccomp
from vfsd.worker.descriptors import anonymous, bound_name, is_fd_folder, outside_tables
from vfsd.worker.fault_budget import FaultBudget
from vfsd.worker.log_forward import LogForward
from vfsd.worker.sandbox import Sandbox
from vfsd.worker.sweep import Sweep
from vfsd.worker.tables import Tables

START_SECONDS: Final = 60.0  # a worker that has not started by then hangs, and is killed
PAUSE_SECONDS: Final = 0.1  # after an unexpected error
SHORT_LIFE_SECONDS: Final = 0.5
FREE_RESPAWNS: Final = 5  # short lives in a row before the next worker has to wait
WAIT_MIN_SECONDS: Final = 0.01
WAIT_MAX_SECONDS: Final = 1.0


@dataclass
class Slot:
    """One place for a worker."""

    pid: int = 0  # 0: the slot is empty
    born: float = 0.0  # time.monotonic
    short_lives: int = 0  # in a row
    respawn_at: float | None = None  # time.monotonic, while the slot waits
    is_ended: bool = False  # no worker is created here again
    # As descriptors.anonymous(). Until the worker has started: the fds open at its birth …
    before: dict[int, str] | None = None
    # … and then the fds that are the worker's own.
    private: dict[int, str] = field(default_factory=dict)

    def note_death(self, now: float) -> None:
        self.pid = 0
        self.short_lives = self.short_lives + 1 if now - self.born < SHORT_LIFE_SECONDS else 0

    def wait_seconds(self) -> float:
        """How long the slot's next worker has to wait."""
        excess = self.short_lives - FREE_RESPAWNS
        if excess <= 0:
            return 0.0
        return float(min(WAIT_MAX_SECONDS, WAIT_MIN_SECONDS * 2 ** min(excess, 10)))


class Pool:
    """The whole pool; run() returns when the channel is closed."""

    def __init__(self, job: Job, sandbox: Sandbox, channel: FdChannel, tables: Tables) -> None:
        self._job = job
        self._sandbox = sandbox
        self._channel = channel
        self._tables = tables
        self._slots = [Slot() for _ in range(job.slots)]
        self._adopted: set[int] = set()
        self._faults = FaultBudget(job.worker_faults)
        self._closers: dict[int, set[int]] = {}  # pid -> the fds that the process closes
        self._guard = sandbox.handles.guard
        self._log = LogForward(self._send, job.log_level)
        self._sweep = Sweep(
            tables, job.slots, sandbox.proc_fd, self._not_in_tables, self._close_elsewhere
        )
        self._wake, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._started = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._own = frozenset(
            {*job.fds.kept(), sandbox.root_fd, sandbox.proc_fd, sandbox.oom_score.fd}
            | {*sandbox.handles.sockets, 0, 1, 2, self._wake, self._wake_write, self._started}
        )
        channel.socket.setblocking(False)
        _handle_signals(self._wake_write)

    def run(self) -> None:
        setproctitle(f"vfsd: {self._job.name} pool")
        held = self._sandbox.handles
        self._send({"event": "ready", "opens_handles": held.outcome.is_raw})
        for note in self._sandbox.notes:
            self._log.warn(note)
        self._log.write("warn" if held.is_hazard else "info", held.line)
        while self._turn_safely():
            pass
        for pid in [*(slot.pid for slot in self._slots if slot.pid), *self._closers]:
            os.kill(pid, signal.SIGKILL)

    def _send(self, content: Content) -> bool:
        """Send without waiting: a supervisor that does not listen must not stop the pool."""
        try:
            self._channel.send(content)
        except OSError:
            return False
        return True

    def _turn_safely(self) -> bool:
        try:
            return self._turn()
        except Exception as error:  # a bug of ours must not cost the guest every open file
            self._log.error(f"the pool continues after an unexpected error: {describe(error)}")
            time.sleep(PAUSE_SECONDS)
            return True

    def _turn(self) -> bool:
        """Wait for an event and act on it; False when the channel is closed."""
        ready = _poll((self._channel.fileno(), self._wake), self._timeout())
        if self._wake in ready:
            _drain(self._wake)
        self._reap()
        self._respawn_due()
        if orphans := self._sweep.look_if_due():
            self._log.debug(f"{orphans} files that a dead worker had left open were closed")
        return self._channel.fileno() not in ready or self._receive()

    def _timeout(self) -> float | None:
        """Seconds until a worker or a look for orphans is due; None if neither is."""
        times = [self._sweep.due, *(slot.respawn_at for slot in self._slots)]
        due = [at for at in times if at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    # Orders of the supervisor.

    def _receive(self) -> bool:
        try:
            packet = self._channel.receive()
        except BlockingIOError:
            return True
        except ProtocolError as error:
            self._log.error(f"fd channel: message refused: {error}")
            return True
        except OSError:
            return False
        if packet is None:
            return False
        self._obey(packet)
        return True

    def _obey(self, packet: Packet) -> None:
        """Carry out the packet's order and answer; fds that the order does not adopt are closed."""
        self._adopted |= set(packet.fds)
        try:
            answer = self._act(packet)
        except (ProtocolError, OSError) as error:
            answer = {"error": str(error)}
        if "fds" not in answer:
            self._drop(packet.fds)
        self._send({"id": packet.content.get("id"), **answer})

    def _act(self, packet: Packet) -> Content:
        content = packet.content
        match content.get("op"):
            case "adopt":
                return {"fds": list(packet.fds)}
            case "drop":
                self._drop(_fd_list(content))
                return {}
            case "spawn":
                return self._spawn_now(number(content, "slot", len(self._slots) - 1))
            case "kill":
                self._kill(number(content, "slot", len(self._slots) - 1))
                return {}
        raise ProtocolError(f"unknown op {content.get('op')!r}")

    def _drop(self, fds: Sequence[int]) -> None:
        if not set(fds) <= self._adopted:
            raise ProtocolError("fds to drop that were never adopted")
        for fd in set(fds):
            self._adopted.discard(fd)
            os.close(fd)

    def _kill(self, index: int) -> None:
        """Kill the worker of a slot; the pool then replaces that worker like any other dead
        worker."""
        if pid := self._slots[index].pid:
            os.kill(pid, signal.SIGKILL)

    def _spawn_now(self, index: int) -> Content:
        slot = self._slots[index]
        if slot.is_ended:
            return {"pid": 0, "ended": True}
        if not slot.pid:
            self._spawn(index)
        return {"pid": slot.pid}

    # Life and death of workers.

    def _spawn(self, index: int) -> None:
        """Create the worker of a slot and wait until it has started (or died)."""
        slot = self._slots[index]
        before = anonymous(self._outside_tables())
        place = queue_worker.Place(self._job, self._sandbox, self._tables, index, self._started)
        _drain(self._started)
        with self._sandbox.oom_score.raised():
            pid = check(lib.clone_process())
            if pid == 0:
                _become_worker(place)
        slot.pid, slot.born, slot.respawn_at = pid, time.monotonic(), None
        slot.before, slot.private = before, {}
        if self._await_start(slot):
            slot.private = self._new_since(before, self._outside_tables(), index)
            slot.before = None
        os.write(self._wake_write, b"\0")  # reap workers that died during the wait

    def _await_start(self, slot: Slot) -> bool:
        """Wait for the eventfd that the worker writes when its row in the worker table is filled
        in. Return: has the worker started?"""
        deadline = slot.born + START_SECONDS
        while True:
            ready = _poll((self._started, self._wake), deadline - time.monotonic())
            if self._started in ready:
                os.eventfd_read(self._started)
                return True
            if self._wake in ready:
                _drain(self._wake)
            if _has_died(slot.pid):
                return False
            if not ready:
                self._log.error(f"a worker did not start in {START_SECONDS:.0f} s and is killed")
                os.kill(slot.pid, signal.SIGKILL)
                return False

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._closers.pop(pid, None)
            if pid == self._guard:
                self._guard = 0
                self._log.error("the broker of file handles is gone: inodes without an fd are lost")
            for index, slot in enumerate(self._slots):
                if slot.pid == pid:
                    self._bury(index, os.waitstatus_to_exitcode(status))

    def _bury(self, index: int, code: int) -> None:
        """A worker died: release what it held, and fill its slot again."""
        slot = self._slots[index]
        pid = slot.pid
        slot.note_death(time.monotonic())
        why_not_again = self._faults.why_not_again(code, time.monotonic())
        slot.is_ended = why_not_again is not None
        again = code != queue_worker.EXIT_STOPPED and not slot.is_ended
        try:
            for fd in self._left_behind(index, pid):
                _close_if_open(fd)
        finally:  # even after an error here the queue must be served again
            self._tables.bury(index)
            self._sweep.begin()
            if again:
                slot.respawn_at = time.monotonic() + slot.wait_seconds()
        self._respawn_due()
        how = {"signal": -code} if code < 0 else {"status": code}
        self._send({"event": "worker-died", "slot": index, "respawned": again, **how})
        if why_not_again:
            self._log.error(f"worker {index} is not created again: {why_not_again}")

    def _left_behind(self, index: int, pid: int) -> set[int]:
        """The fds of a dead worker: those that were its own at the start, the connections that it
        accepted later, and, if the worker died while it started, all that appeared since its
        birth."""
        slot, now = self._slots[index], self._outside_tables()
        ours = bound_name(self._job.fds.listeners[index])
        left = {fd for fd in anonymous(now) if bound_name(fd) == ours}
        left |= {fd for fd, link in slot.private.items() if now.get(fd) == link}
        left |= {fd for fd in self._claimed(index) if is_fd_folder(now.get(fd, ""), pid)}
        if slot.before is not None:
            left |= self._new_since(slot.before, now, index).keys()
        return left - self._own - self._adopted

    def _outside_tables(self) -> dict[int, str]:
        return outside_tables(self._sandbox.proc_fd, self._tables)

    def _not_in_tables(self) -> set[int]:
        """Every fd that no op has opened: the fds of the pool, the adopted fds, the fds of living
        workers, and the fds that are being closed."""
        claimed = (self._claimed(index) for index in range(len(self._slots)))
        own = self._own | self._adopted | anonymous(self._outside_tables()).keys()
        return set(own).union(*claimed, *self._closers.values())

    def _claimed(self, index: int) -> set[int]:
        """The private fd that a worker has written into its row. A worker is not trusted, so no fd
        is closed only because a row names it."""
        row = self._tables.workers.rows[index]
        return {row.private_fds[0]} if row.private_fd_count else set()

    def _new_since(self, before: dict[int, str], now: dict[int, str], index: int) -> dict[int, str]:
        """The fds that zmq and C opened for the worker of a slot: all new fds, except those of
        another worker and a connection that another worker has just accepted."""
        ours = bound_name(self._job.fds.listeners[index])
        others = [slot.private for i, slot in enumerate(self._slots) if i != index]
        return {
            fd: link
            for fd, link in anonymous(now).items()
            if before.get(fd) != link
            and bound_name(fd) in (None, "", ours)
            and not any(private.get(fd) == link for private in others)
        }

    def _close_elsewhere(self, fds: set[int]) -> None:
        """Close files of the share in a process of its own: a close may call the file system, and a
        file system that hangs then holds up only that process. No other process closes these fds
        while it runs. If the process is killed, the fds that are left are found after the next
        death of a worker."""
        pid = check(lib.clone_process())
        if pid == 0:
            _become_closer(self._job.name, fds)
        self._closers[pid] = fds

    def _respawn_due(self) -> None:
        now = time.monotonic()
        for index, slot in enumerate(self._slots):
            if slot.respawn_at is None or slot.respawn_at > now:
                continue
            slot.respawn_at = None
            try:
                self._spawn(index)
            except OSError as error:
                slot.respawn_at = now + WAIT_MAX_SECONDS
                self._log.error(f"cannot create worker {index}: {error.strerror}; trying again")


def _become_worker(place: queue_worker.Place) -> None:
    """Run the worker in the cloned process. Never returns (clone_process.h)."""
    callable_ = partial(_live_as_worker, place)
    lib.clone_process_run(ffi.cast("void *", id(callable_)))


def _live_as_worker(place: queue_worker.Place) -> NoReturn:
    status = queue_worker.EXIT_FAILED
    try:
        own_socket = place.sandbox.handles.socket_of(place.slot)
        seccomp.confine_worker(place.sandbox.worker_filter, own_socket)
        status = queue_worker.run(place)
    except BaseException as error:
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(2, f"vfsd: worker {place.slot}: {describe(error)}\n".encode())
    finally:
        os._exit(status)


def _become_closer(name: str, fds: set[int]) -> NoReturn:
    """Run as the process that closes files: it shares the fd table, so an fd that it closes is
    closed for all."""
    try:
        setproctitle(f"vfsd: {name} closing files")
        for fd in fds:
            _close_if_open(fd)
    finally:
        os._exit(0)


def _handle_signals(wake_write: int) -> None:
    """Let deaths of children wake the poll. Signals that a terminal or service manager sends to the
    whole group are ignored here: the keeper answers them."""
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for ignored in ENDING:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # our starter may have blocked signals


def _poll(fds: tuple[int, ...], timeout: float | None) -> set[int]:
    """Wait up to `timeout` seconds; returns those of `fds` that can be read (or are closed)."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    milliseconds = None if timeout is None else max(0, int(timeout * 1000) + 1)
    return {fd for fd, _ in poll.poll(milliseconds)}


def _fd_list(content: Content) -> list[int]:
    fds = content.get("fds")
    if not isinstance(fds, list) or not all(type(fd) is int for fd in fds):
        raise ProtocolError("'fds' is not a list of fds")
    return fds


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 512):
            pass
    except BlockingIOError:
        pass


def _has_died(pid: int) -> bool:
    """Is this child waiting to be reaped? The call does not reap it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _close_if_open(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass
