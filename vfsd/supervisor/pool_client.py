# SPDX-License-Identifier: Apache-2.0
"""The supervisor's end of one pool: starts it, gives it fds, has workers created, kills it.

Trust: the pool is in the sandbox, and so are the workers, which share the pool's fd table and may
write to its channel. Every answer is checked, and text from the pool goes into the log and nowhere
else. Anything wrong in what the pool sends becomes a PoolTakenOverError, in one place:
from_the_sandbox().

Deaths. The process that is watched is the holder, the first process of the sandbox: if the holder
ends, the sandbox is lost. If a pool dies the holder creates another pool, which reports itself. An
order that was read by the dead pool may be lost, so every order without an answer is sent again,
with the same id; the pool carries it out once.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from vfsd.supervisor.descendants import (
    Process,
    descendants,
    has_ended,
    pid_inside,
    state_of,
)
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.first_process import start_first
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.options import Options
from vfsd.supervisor.patience import Patience
from vfsd.supervisor.pool_errors import PoolDiedError, PoolTakenOverError, from_the_sandbox
from vfsd.supervisor.saved_state import LostPool, SavedPool
from vfsd.supervisor.segments import Segments
from vfsd.supervisor.stderr_relay import StderrRelay, stderr_pipe
from vfsd.supervisor.worker_socket import listen
from vfsd.transport.control_messages import (
    Content,
    PoolEvent,
    PoolFailed,
    PoolLog,
    PoolReady,
    PoolReplaced,
    WorkerDied,
    decode_fd_numbers,
    decode_pool_event,
    decode_refusal,
    decode_spawned,
)
from vfsd.transport.errors import OperatorError, ProtocolError
from vfsd.transport.fd_channel import MAX_FDS, FdChannel, Packet
from vfsd.transport.rate_limit import Bucket, Rate

SLOW_SECONDS: Final = 10.0  # after which a log line says that a start or an answer is slow
PACKETS: Final = Rate(burst=2000, per_second=200)  # a pool sends a few for each worker that dies
FREEZE_SECONDS: Final = 1.0
END_SECONDS: Final = 5.0
STOPPED: Final = "TZX"  # states of a process that is stopped or has ended


@dataclass
class Order:
    """An order that waits for its answer."""

    packet: Content
    fds: list[int]
    is_sent: bool = False
    answer: Content | None = None


class PoolClient:
    """The pools of one sandbox, from start to kill. `pid` and `pidfd` are the holder's. `numbers`
    maps each fd of the supervisor to its number in the sandbox."""

    def __init__(
        self,
        loop: EventLoop,
        launcher: Launcher,
        channel: FdChannel,
        segments: Segments,
        listeners: list[tuple[str, int]],
        stderr: StderrRelay,
        patience: Patience,
    ) -> None:
        self.channel = channel
        self.stderr = stderr
        self.segments = segments
        self.listeners = listeners  # by slot: the worker's name in the runtime folder, its socket
        self.pid: int | None = None
        self.pidfd: int | None = None
        self.ready = False
        self.opens_handles = False  # as the pool reported at its start, before it had a guest
        self.numbers: dict[int, int] = {}
        self.spawned: set[int] = set()  # slots that have a worker
        self.ended: set[int] = set()  # slots whose worker died and is not created again
        self.on_event: Callable[[PoolEvent], None] = lambda _: None
        self._has_renewed = False  # a worker has crashed, and another template makes the next pool
        self._patience = patience
        self._loop = loop
        self._launcher = launcher
        self._packets = Bucket(PACKETS)
        self._first: int | None = None  # pidfd of the process that makes the holder and exits
        self._ids = count(int.from_bytes(os.urandom(3), "little") << 16)
        self._orders: dict[int, Order] = {}  # by id
        channel.socket.setblocking(False)
        loop.register(channel.fileno(), self._receive)

    @classmethod
    def start(
        cls,
        loop: EventLoop,
        log: LogCollector,
        launcher: Launcher,
        options: Options,
        device: int,
        patience: Patience,
        lost: LostPool | None = None,
    ) -> "PoolClient":
        """Start a pool and wait until it is isolated and ready. Raises OperatorError if the pool
        reports that it cannot work, PoolDiedError if it ends without a report. `lost`: a dead
        sandbox with a session that goes on."""
        ours, theirs = FdChannel.pair()
        listeners = [listen(Path(f"worker-{i}")) for i in range(options.workers)]
        stderr, their_stderr = stderr_pipe()
        relay = StderrRelay(loop, log, stderr)
        rings = lost.segments.rings if lost else None
        segments = Segments.create(device, options.inode_limit, rings)
        pool = cls(loop, launcher, ours, segments, listeners, relay, patience)
        pool.ended = set(lost.ended) if lost else set()
        pool.spawned = set(pool.ended)
        pool.on_event = lambda event: _log_event(log, event)
        try:
            try:
                pool._launch(theirs.fileno(), their_stderr, lost.segments.tables() if lost else [])
            finally:
                theirs.close()
                os.close(their_stderr)
            pool._await_ready()
        except Exception:
            pool.kill()
            raise
        return pool

    def _await_ready(self) -> None:
        """Wait until the pool is ready and the process that made it has ended. There is no limit
        while the pool lives: on a slow host, or with a tenth of a CPU, a start may take any
        time."""
        try:
            self._await_start(lambda: self.ready and self._first is None)
        except PoolDiedError:
            raise PoolDiedError("the pool of workers ended before it was ready") from None

    def _await_start(self, condition: Callable[[], bool]) -> None:
        self._patience.wait(condition, "the start of the pool", self.pid, SLOW_SECONDS)

    def _launch(self, channel: int, stderr: int, tables: list[int]) -> None:
        listeners = [fd for _, fd in self.listeners]
        fds = [channel, stderr, *self.segments.fds(), *listeners, *tables]
        self._first = start_first(self._launcher, fds, self._loop, self._await_start)
        self._loop.register(self._first, self._forget_first)

    def _forget_first(self) -> None:
        """Stop watching the process that makes the pool: it has ended, or has been killed."""
        first, self._first = self._first, None
        if first is not None:
            self._loop.unregister(first)
            os.close(first)

    def kill(self) -> None:
        """Kill the pool and its workers, and release everything that was kept for the pool."""
        self.bury()
        self.segments.close()

    def lost(self, owed: frozenset[int]) -> LostPool:
        """What is left of a pool that died: the caller owns its segments. `owed`: slots whose
        worker this pool was to create, and maybe has not created."""
        return LostPool(self.segments, owed | self.spawned, frozenset(self.ended))

    def bury(self) -> None:
        """Kill what lives of a pool that died, and release everything but its segments."""
        self._loop.unregister(self.channel.fileno())
        self._freeze()
        # A pool that is killed in the first round may have created a worker since we looked.
        for _ in range(2):
            for process in self._descendants():
                process.kill()
        if self._first is not None:
            self._launcher.kill(self._first)
            self._forget_first()
        if self.pidfd is not None:
            self._loop.unregister(self.pidfd)
            self._launcher.kill(self.pidfd)
            os.close(self.pidfd)
        self.stderr.close()
        self.channel.close()
        for path, fd in self.listeners:
            os.close(fd)
            Path(path).unlink(missing_ok=True)

    def _freeze(self) -> None:
        """Stop the holder. Otherwise the holder could create a pool while we look for its children,
        and without a pid namespace that pool would outlive the holder."""
        if self.pidfd is None:
            return
        with contextlib.suppress(OSError):  # the holder is gone
            signal.pidfd_send_signal(self.pidfd, signal.SIGSTOP)
            deadline = time.monotonic() + FREEZE_SECONDS  # a holder that hangs creates no pool
            while self.pid and state_of(self.pid) not in STOPPED and time.monotonic() < deadline:
                time.sleep(0.001)

    def adopt(self, fds: Iterable[int]) -> None:
        """Give the pool copies of `fds`, and record their numbers in the pool."""
        rest = list(fds)
        while rest:
            batch, rest = rest[:MAX_FDS], rest[MAX_FDS:]
            answer = self._demand({"op": "adopt"}, batch)
            with from_the_sandbox():
                numbers = decode_fd_numbers(answer, len(batch))
            self.numbers |= zip(batch, numbers, strict=True)

    def drop(self, fds: Iterable[int]) -> None:
        """Have the pool close its copies of `fds`."""
        numbers = [self.numbers.pop(fd) for fd in fds]
        if numbers and _refusal(self._ask({"op": "drop", "fds": numbers})) is not None:
            # A supervisor that died here has dropped some or all of them: drop each one by itself.
            for number in numbers:
                self._ask({"op": "drop", "fds": [number]})

    def spawn(self, slot: int) -> int:
        """Have the worker of `slot` created unless it exists; returns its pid inside the sandbox, 0
        if the slot has ended."""
        answer = self._demand({"op": "spawn", "slot": slot})
        self.spawned.add(slot)
        if answer.get("ended") is True:
            self.ended.add(slot)
        with from_the_sandbox():
            return decode_spawned(answer)

    def kill_worker(self, slot: int) -> None:
        """Have the worker of `slot` killed, and created again."""
        self._order({"op": "kill", "slot": slot})

    def set_log_level(self, level: str) -> None:
        """Have the pool log from this level up."""
        self._order({"op": "log-level", "level": level})

    def _order(self, content: Content) -> None:
        """Send an order and do not wait for the answer, so that callbacks of the event loop may
        call this."""
        with contextlib.suppress(BlockingIOError):  # the pool hangs, and cannot carry it out
            self._send({"id": next(self._ids), **content})

    def worker(self, slot: int) -> Process | None:
        """The process of the worker of `slot`; None if there is no worker at the moment."""
        inside = self.spawn(slot)
        found = (p for p in self._descendants() if pid_inside(p.pid) == inside)
        return next(found, None)

    def _demand(self, content: Content, fds: list[int] | None = None) -> Content:
        """Send an order that a pool of ours never refuses; PoolDiedError if it is refused."""
        answer = self._ask(content, fds)
        if (refusal := _refusal(answer)) is not None:
            raise PoolTakenOverError(f"the pool refused {content['op']!r}: {refusal}")
        return answer

    def _ask(self, content: Content, fds: list[int] | None = None) -> Content:
        """Send an order and wait for the answer, without a limit while the pool is alive."""
        request_id = next(self._ids)
        order = self._orders[request_id] = Order({"id": request_id, **content}, fds or [])
        self._wait(lambda: self._is_answered(order), content["op"])
        del self._orders[request_id]
        assert order.answer is not None
        return order.answer

    def _wait(self, condition: Callable[[], bool], op: str) -> None:
        assert self.pid is not None
        self._patience.wait(condition, f"the pool's answer to {op!r}", self.pid, SLOW_SECONDS)

    def _is_answered(self, order: Order) -> bool:
        """Has the answer come? Sends the order if that has still to be done."""
        if order.answer is None and not order.is_sent:
            with contextlib.suppress(BlockingIOError):  # the channel is full
                self._send(order.packet, order.fds)
                order.is_sent = True
        return order.answer is not None

    def _send(self, packet: Content, fds: Sequence[int] = ()) -> None:
        try:
            self.channel.send(packet, fds)
        except BlockingIOError:
            raise
        except OSError as error:
            raise PoolDiedError(f"the pool cannot be reached: {error.strerror}") from None

    # Packets from the pool; the event loop calls these.

    def _receive(self) -> None:
        try:
            with from_the_sandbox():
                self._take(self.channel.receive())
        except BlockingIOError:
            return
        except OSError as error:  # the sandbox ended with an order unread: the channel is reset
            raise PoolDiedError(f"the pool's channel failed: {error.strerror}") from None

    def _take(self, packet: Packet | None) -> None:
        if packet is None:
            raise self._closed()
        if not self._packets.take(1, time.monotonic()):
            raise ProtocolError(f"it sent packets without end, more than {PACKETS.burst} at once")
        request_id = packet.content.get("id")
        if request_id is None:
            self._take_event(decode_pool_event(packet.content, len(self.listeners)), packet)
        elif type(request_id) is int and request_id in self._orders:
            self._orders[request_id].answer = packet.content

    def _closed(self) -> PoolDiedError:
        """Why the channel is closed. The kernel closes it a moment before a pool has ended."""
        if self.pidfd is None or has_ended(self.pidfd, END_SECONDS):
            return PoolDiedError("the pool died")
        return PoolTakenOverError("the pool closed its channel")

    def _take_event(self, event: PoolEvent, packet: Packet) -> None:
        if isinstance(event, PoolReady | PoolFailed) and self.ready:
            raise ProtocolError("it reported a second time that it is ready or has failed")
        if isinstance(event, PoolFailed):
            raise OperatorError(event.error)
        if isinstance(event, PoolReady) and packet.pid:
            self.pid, self.opens_handles = packet.pid, event.opens_handles
            self.watch(os.pidfd_open(packet.pid))
            self.ready = True
        if isinstance(event, WorkerDied) and event.is_crash and not self._has_renewed:
            self._has_renewed = True  # the next sandbox has other addresses than this one
            self._launcher.renew_template()
        if isinstance(event, PoolReplaced):
            for order in self._orders.values():
                order.is_sent = False
        self.on_event(event)

    def watch(self, pidfd: int) -> None:
        """Raise PoolDiedError out of the event loop when the process behind `pidfd` is gone."""
        self.pidfd = pidfd
        self._loop.register(pidfd, self._died)

    def _died(self) -> None:
        raise PoolDiedError("the sandbox died")

    def _descendants(self) -> list[Process]:
        """The descendants of the holder. Empty once the holder has ended: another process may have
        its pid then."""
        if self.pid is None or self.pidfd is None:
            return []
        found = descendants(self.pid)
        return [] if has_ended(self.pidfd) else found  # alive now, so alive while we looked

    # Handing over to another supervisor.

    def saved(self) -> SavedPool:
        """The state for restore(); the pool must be ready."""
        assert self.pid is not None
        assert self.pidfd is not None
        return SavedPool(
            channel=self.channel.fileno(),
            stderr=self.stderr.fd,
            pid=self.pid,
            pidfd=self.pidfd,
            segments=self.segments,
            listeners=tuple(self.listeners),
            opens_handles=self.opens_handles,
            numbers=self.numbers,
            spawned=frozenset(self.spawned),
            ended=frozenset(self.ended),
        )

    @classmethod
    def restore(
        cls,
        loop: EventLoop,
        launcher: Launcher,
        log: LogCollector,
        saved: SavedPool,
        patience: Patience,
    ) -> "PoolClient":
        stderr = StderrRelay(loop, log, saved.stderr)
        channel = FdChannel.of_supervisor(saved.channel)
        pool = cls(loop, launcher, channel, saved.segments, list(saved.listeners), stderr, patience)
        pool.pid = saved.pid
        pool.watch(saved.pidfd)
        pool.opens_handles = saved.opens_handles
        pool.numbers = dict(saved.numbers)
        pool.spawned = set(saved.spawned)
        pool.ended = set(saved.ended)
        pool.ready = True
        return pool


def _refusal(answer: Content) -> str | None:
    with from_the_sandbox():
        return decode_refusal(answer)


def _log_event(log: LogCollector, event: PoolEvent) -> None:
    if isinstance(event, PoolLog):
        log.write(event.level, event.text, "pool")
