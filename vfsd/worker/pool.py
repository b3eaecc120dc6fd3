# SPDX-License-Identifier: Apache-2.0
"""The pool: carries out the supervisor's orders, creates the workers, and cleans up after dead
workers.

The pool reads no guest memory, starts no thread, waits for no process except a worker that starts,
and never calls a file system of the share (a file system that hangs would hold up every queue). It
takes orders only from the fd channel: adopt fds, drop fds, spawn or kill a worker, log from another
level up, halt all workers and leave their files to another sandbox (bequest.py). When that channel
closes, keeper and supervisor are both dead, and the pool ends, and the sandbox with it.

Death. The holder creates another pool, and workers serve all the time (holder.py). The next pool
finds in the record (pool_state.py) what this pool knew. An order is answered in four steps: carry
it out as far as it opens something; save, with the answer; close what is to be closed; send the
answer. The next pool reports itself to the supervisor, which sends orders without an answer again,
with the same id. An order that has been saved gets its answer once more; an order that has not been
saved is carried out, and the fds that came with it the first time are found as strangers
(fd_owners.py) or by the sweep (sweep.py).
"""

import os
import time
from collections.abc import Iterable
from typing import Final, NoReturn

from vfsd.transport.control_messages import Content, number
from vfsd.transport.errors import ProtocolError, describe
from vfsd.transport.fd_channel import Packet
from vfsd.transport.job import Job
from vfsd.transport.process_title import setproctitle
from vfsd.worker.bequest import bequeath, show_namespaces
from vfsd.worker.fault_budget import FaultBudget
from vfsd.worker.fd_calls import close_if_open, drain, wait_readable
from vfsd.worker.inheritance import Inheritance
from vfsd.worker.log_forward import LogForward
from vfsd.worker.pool_memory import PoolMemory
from vfsd.worker.pool_state import PoolState, Slot
from vfsd.worker.workers import Workers

PAUSE_SECONDS: Final = 0.1  # after an unexpected error
EXIT_ENDED: Final = 0  # the sandbox ends as well
EXIT_FAILED: Final = 1


class RecordError(Exception):
    """The record is nonsense. No process of an honest sandbox writes such a record."""


# The fds to close when the answer to an order is saved.
Outcome = tuple[Content, Iterable[int]]


def live(inherited: Inheritance, ended: int | None) -> NoReturn:
    """Run as a pool. `ended`: how the pool before ended, as os.waitstatus_to_exitcode(); None in
    the first pool."""
    status = EXIT_FAILED
    try:
        setproctitle(f"vfsd: {inherited.job.name} pool")
        Pool(inherited, ended).run()
        status = EXIT_ENDED
    except BaseException as error:
        status = EXIT_ENDED if isinstance(error, RecordError) else EXIT_FAILED
        os.write(2, f"vfsd: pool: {describe(error)}\n".encode())
    finally:
        os._exit(status)


class Pool:
    """The whole pool; run() returns when the channel is closed."""

    def __init__(self, inherited: Inheritance, ended: int | None) -> None:
        job = inherited.job
        self._inherited = inherited
        self._channel = inherited.channel
        self._memory = inherited.memory
        self._log = LogForward(self._send, job.log_level)
        self._state = _load(self._memory, job)
        self._workers = Workers(inherited, self._state, self._save, self._send, self._log)
        self._broker = inherited.sandbox.handles.socket_of(0)
        if ended is not None:
            how = {"signal": -ended} if ended < 0 else {"status": ended}
            self._workers.take_over()
            self._send({"event": "pool-replaced", **how})

    def run(self) -> None:
        while self._turn_safely():
            pass
        self._workers.kill_all()

    def _save(self) -> None:
        self._memory.record.save(self._state.encode())

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
        except Exception as error:  # a bug of ours must not cost the guest a pause
            self._log.error(f"the pool continues after an unexpected error: {describe(error)}")
            time.sleep(PAUSE_SECONDS)
            return True

    def _turn(self) -> bool:
        """Wait for an event and act on it; False when the channel is closed."""
        ready = self._wait(self._workers.seconds_left())
        if self._memory.reaped in ready:
            drain(self._memory.reaped)
        self._workers.turn()
        return self._channel.fileno() not in ready or self._receive()

    def _wait(self, seconds: float | None) -> set[int]:
        """Wait up to `seconds`; returns the fds with an event."""
        broker = () if self._broker < 0 else (self._broker,)
        ready = wait_readable((self._channel.fileno(), self._memory.reaped), seconds, broker)
        if self._broker in ready:
            self._broker = -1
            self._log.error("the broker of file handles is gone: inodes without an fd are lost")
        return ready

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
        order = packet.content.get("id")
        answer = self._state.answer_to(order)
        closing: Iterable[int] = packet.fds
        if answer is None:
            try:
                answer, closing = self._act(packet)
            except (ProtocolError, OSError) as error:
                answer = {"error": str(error)}
            self._state.answers.append((order, answer))
            self._save()
        for fd in closing:
            close_if_open(fd)
        self._send({"id": order, **answer})

    def _act(self, packet: Packet) -> Outcome:
        content = packet.content
        slots = len(self._state.slots)
        match content.get("op"):
            case "adopt":
                self._state.adopted |= set(packet.fds)
                return {"fds": list(packet.fds)}, ()
            case "drop":
                return {}, {*self._release(_fd_list(content)), *packet.fds}
            case "spawn":
                return self._spawn(number(content, "slot", slots - 1)), packet.fds
            case "show":
                show_namespaces(packet.fds, self._inherited.sandbox)
                return {}, packet.fds
            case "halt":
                return {"halted": self._workers.halt()}, packet.fds
            case "resume":
                self._workers.resume()
                return {}, packet.fds
            case "bequeath":
                bequeath(packet.fds, self._inherited)
                return {}, packet.fds
            case "kill":
                self._workers.kill(number(content, "slot", slots - 1))
                return {}, packet.fds
            case "log-level":
                self._set_log_level(content)
                return {}, packet.fds
        raise ProtocolError(f"unknown op {content.get('op')!r}")

    def _set_log_level(self, content: Content) -> None:
        try:
            self._log.set_level(str(content.get("level")))
        except ValueError:
            raise ProtocolError("the order names no log level") from None

    def _release(self, fds: list[int]) -> set[int]:
        """Forget adopted fds, which the caller then closes."""
        if not set(fds) <= self._state.adopted:
            raise ProtocolError("fds to drop that were never adopted")
        self._state.adopted -= set(fds)
        return set(fds)

    def _spawn(self, index: int) -> Content:
        slot = self._state.slots[index]
        if slot.is_ended:
            return {"pid": 0, "ended": True}
        if not slot.pid:
            self._workers.spawn(index)
        return {"pid": slot.pid}


def _load(memory: PoolMemory, job: Job) -> PoolState:
    saved = memory.record.load()
    if saved is None:
        return PoolState([Slot() for _ in range(job.slots)], FaultBudget(job.worker_faults))
    try:
        return PoolState.decode(saved, job.worker_faults)
    except (LookupError, TypeError, ValueError):
        raise RecordError("the record of the pool before cannot be read") from None


def _fd_list(content: Content) -> list[int]:
    fds = content.get("fds")
    if not isinstance(fds, list) or not all(type(fd) is int for fd in fds):
        raise ProtocolError("'fds' is not a list of fds")
    return fds
