# SPDX-License-Identifier: Apache-2.0
"""One pool, its workers and the device that they serve: what a front-end's messages act upon.

apply() is the centre of this file. share_fds() has given the fds to the pool; apply() publishes the
device, collects the acknowledgements of the workers, and drops the fds that are out of use.

An fd is dropped only when no worker can use the fd any more: each worker has acknowledged a device
without the fd, or was killed. A worker that does not acknowledge in time is killed, and its
successor is asked. A worker that cannot answer at the moment is waited for (is_held_up).
"""

import os
import select
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final

from vfsd.supervisor.descendants import Process
from vfsd.supervisor.device import DeviceSegment
from vfsd.supervisor.effects import Device, DeviceVring
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.former import Former
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.options import Options
from vfsd.supervisor.patience import Patience
from vfsd.supervisor.pool_client import PoolClient
from vfsd.supervisor.saved_state import LostPool, SavedPool
from vfsd.supervisor.session import Session
from vfsd.supervisor.worker_links import VIOLATIONS, WorkerEvent, WorkerLinks
from vfsd.transport.control_messages import (
    Adopted,
    Hello,
    LogLine,
    PoolEvent,
    PoolLog,
    PoolReplaced,
    RingBroken,
    WorkerDied,
)

ANSWER_TICKS: Final = os.sysconf("SC_CLK_TCK")  # a second of CPU time: more than an answer needs
KILLS: Final = 3  # how often workers that do not acknowledge are killed before they are left out


@dataclass(frozen=True)
class BackendContext:
    """The parts of a supervisor that its backend uses."""

    loop: EventLoop
    launcher: Launcher
    options: Options
    device: DeviceSegment
    log: LogCollector
    patience: Patience


class Backend:
    """A pool that is ready, the links to its workers, and the device segment."""

    def __init__(self, context: BackendContext, pool: PoolClient) -> None:
        self.pool = pool
        self._slots = context.options.workers
        self._level = context.options.log_level  # pool and workers begin with it
        self._vring_count = context.options.request_queues + 1
        self._log = context.log
        self._segment = context.device
        self._patience = context.patience
        self._links = WorkerLinks(context.loop, self._vring_count, self)
        self._vrings: tuple[DeviceVring, ...] = ()  # the vrings that run
        self._generation = 0  # the generation of the device that was published last
        pool.on_event = self._on_pool_event
        if self._log.level != self._level:
            pool.set_log_level(self._log.level)

    @classmethod
    def start(
        cls,
        context: BackendContext,
        lost: LostPool | None = None,
        former: Former | None = None,
    ) -> "Backend":
        """Start a pool. Raises what PoolClient.start() raises. `lost`, `former`: a dead sandbox, or
        a sandbox that serves, with a session that goes on."""
        device, options = context.device, context.options
        device.reset(options.request_queues + 1)
        pool = PoolClient.start(
            context.loop,
            context.log,
            context.launcher,
            options,
            device.fd,
            context.patience,
            lost,
            former,
        )
        return cls(context, pool)

    @classmethod
    def restore(cls, context: BackendContext, saved: SavedPool) -> "Backend":
        """Take over the pool of a supervisor that died."""
        patience = context.patience
        pool = PoolClient.restore(context.loop, context.launcher, context.log, saved, patience)
        backend = cls(context, pool)
        for slot in backend.pool.spawned:
            backend._connect(slot)
        return backend

    def kill(self) -> None:
        self._links.close()
        self.pool.kill()

    def bury(self) -> None:
        """The pool died: release everything but its segments."""
        self._links.close()
        self.pool.bury()

    def slot_of(self, vring: int) -> int:
        """The worker slot that serves a vring. The hiprio queue has the same slot as the first
        request queue."""
        return (vring - 1) % self._slots if vring else 0

    def prepare(self, vring: int) -> None:
        """Create the worker of a vring, unless the worker exists or its slot has ended."""
        self._prepare(self.slot_of(vring))

    def _prepare(self, slot: int) -> None:
        if slot not in self.pool.spawned:
            self.pool.spawn(slot)
            self._connect(slot)

    def share_fds(self, device: Device) -> bool:
        """Give the pool each fd of the device that the pool lacks; True if it lacked any."""
        new = sorted(device.fds() - self.pool.numbers.keys())
        self.pool.adopt(new)
        return bool(new)

    def take_up(self, device: Device, slots: Iterable[int]) -> None:
        """Have workers in these slots serve the device that a pool that died had served. The next
        message then finds workers as before: they drain vrings that it stops, and end the session
        if it ends the session."""
        self.share_fds(device)
        self._publish(device)
        for slot in slots:
            self._prepare(slot)

    def _publish(self, device: Device) -> None:
        self._vrings = device.vrings
        slots = [self.slot_of(index) for index in range(self._vring_count)]
        self._generation = self._segment.write(device, self.pool.numbers, slots)

    def apply(self, session: Session) -> None:
        """Make every worker adopt the session's device. Call share_fds() before this."""
        device = session.device
        self._publish(device)
        adopted = self._adopt(sorted(self.pool.spawned))
        for vring in device.vrings:
            self.prepare(vring.index)
        for index in session.draining():
            answer = adopted.get(self.slot_of(index))
            session.note_base(index, answer.last_avail.get(index) if answer else None)
        self._log_errors(adopted)
        self.pool.drop(sorted(self.pool.numbers.keys() - device.fds()))

    def end_fuse_session(self) -> None:
        """Close the files that the guest had open, while no vring runs. One worker closes the
        files of all workers."""
        self._adopt(self._may_answer(sorted(self.pool.spawned))[:1], ends_session=True)

    def _adopt(self, slots: list[int], ends_session: bool = False) -> dict[int, Adopted]:
        """Have the workers of `slots`, or their successors, acknowledge the published device."""
        adopted: dict[int, Adopted] = {}
        late, kills, start = self._may_answer(slots), 0, monotonic()
        cpu: dict[int, int] = {}  # of the late workers when they were seen first
        while late and kills <= KILLS:
            answers, late = self._links.adopt(self._generation, late, ends_session)
            adopted |= answers
            self._patience.give_up()
            late = self._may_answer(late)
            killed = [slot for slot in late if self._prod(slot, monotonic() - start, cpu)]
            kills += bool(killed)
            late = self._may_answer(late)
        for slot in late:
            text = f"did not acknowledge a change of the device after {kills} kills; left out"
            self._log.write("error", text, f"worker {slot}")
        return adopted

    def _may_answer(self, slots: list[int]) -> list[int]:
        return [slot for slot in slots if slot not in self.pool.ended]

    def _prod(self, slot: int, seconds: float, cpu: dict[int, int]) -> bool:
        """Kill a worker that did not answer for `seconds` although it could; True if the worker was
        killed. `cpu`: the CPU time of each process when it was late for the first time."""
        worker = self.pool.worker(slot)
        if worker and is_held_up(worker, cpu.setdefault(worker.pid, worker.cpu)):
            what = f"worker {slot}'s acknowledgement of a change of the device"
            self._patience.report(what, worker.pid, seconds)
            return False
        if slot in self.pool.ended:
            return False
        self._log.write(
            "error", "did not acknowledge a change of the device in time; killed", f"worker {slot}"
        )
        self.pool.kill_worker(slot)
        return True

    def _log_errors(self, adopted: dict[int, Adopted]) -> None:
        for slot, answer in adopted.items():
            for index, reason in answer.errors.items():
                if self.slot_of(index) == slot:
                    self._log.write("warn", f"queue {index}: {reason}", f"worker {slot}")

    def show_log_level(self) -> None:
        """Have pool and workers log from the level up that the supervisor logs from."""
        self.pool.set_log_level(self._log.level)
        for slot in self.pool.spawned:
            self._links.set_log_level(slot, self._log.level)

    def _connect(self, slot: int) -> None:
        self._links.connect(slot, self.pool.listeners[slot][0])

    # Events from the sandbox; the event loop calls these.

    def on_worker_event(self, slot: int, event: WorkerEvent) -> None:
        source = f"worker {slot}"
        if isinstance(event, LogLine):
            self._log.write(event.level, event.text, source)
        elif isinstance(event, RingBroken):
            text = f"queue {event.vring} is broken and stopped: {event.reason}"
            self._log.write("error", text, source)
        elif isinstance(event, Hello):
            self._log.write("debug", f"serves (pid {event.pid} in the sandbox)", source)
            if self._log.level != self._level:
                self._links.set_log_level(slot, self._log.level)

    def on_violation(self, slot: int, error: str, count: int) -> None:
        """A worker broke the protocol: it has been taken over, since our code never does that."""
        source = f"worker {slot}"
        self._log.write("error", f"broke the protocol; its connection is closed: {error}", source)
        if count >= VIOLATIONS:
            self._log.write("error", f"{source} broke the protocol {count} times; killed")
            self.pool.kill_worker(slot)
            self._links.forgive(slot)

    def _on_pool_event(self, event: PoolEvent) -> None:
        if isinstance(event, PoolLog):
            self._log.write(event.level, event.text, "pool")
        elif isinstance(event, PoolReplaced):
            self._log.write("error", f"the pool died ({event.how}); another pool took over")
            self.pool.set_log_level(self._log.level)
        elif isinstance(event, WorkerDied):
            after = "created again" if event.respawned else "not created again"
            # The pool is not the source of this line. A process that sends log lines in the pool's
            # name could use up the pool's limit, and hide that a worker made a forbidden call.
            self._log.write("error", f"worker {event.slot} died ({event.how}); {after}")
            if not event.respawned and event.slot in self.pool.spawned:
                self._end(event.slot)

    def _end(self, slot: int) -> None:
        """No worker will serve this slot while the pool lives: the queues of the slot stop, and the
        other queues go on. A front-end that connects again gets another pool."""
        self.pool.ended.add(slot)
        self._links.give_up(slot)
        for vring in self._vrings:
            if self.slot_of(vring.index) == slot:
                text = f"queue {vring.index} is stopped until the VMM connects again"
                self._log.write("error", text, f"worker {slot}")
                signal_error(vring.err_fd)


def is_held_up(worker: Process, cpu_before: int) -> bool:
    """Can this worker not answer at the moment? In state D it waits for a file system, and no
    signal ends it. A worker that may run (R) and has used little CPU time since it was late waits
    for a CPU: its successor would have to wait for longer."""
    is_starved = worker.state == "R" and worker.cpu - cpu_before < ANSWER_TICKS
    return worker.state == "D" or is_starved


def signal_error(err_fd: int | None) -> None:
    """Signal the VMM's eventfd for errors of a queue, unless that would block."""
    if err_fd is None:
        return
    poll = select.poll()
    poll.register(err_fd, select.POLLOUT)
    if poll.poll(0):
        with suppress(OSError):
            os.eventfd_write(err_fd, 1)
