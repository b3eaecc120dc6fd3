# SPDX-License-Identifier: Apache-2.0
"""The supervisor's end of one pool: starts it, gives it fds, has workers created, kills it.

Trust: the pool is in the sandbox, and so are the workers, which share the pool's fd table and may
write to its channel. Every answer is checked, and text from the pool goes into the log and nowhere
else. Anything wrong in what the pool sends becomes a PoolDiedError, in one place:
_from_the_sandbox().
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final, NoReturn

from vfsd.supervisor.descendants import Process, descendants, process_of, state_of
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.launcher import Launcher, LauncherGoneError
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.options import Options
from vfsd.supervisor.patience import Patience
from vfsd.supervisor.saved_state import SavedPool
from vfsd.supervisor.segments import Segments
from vfsd.supervisor.stderr_relay import StderrRelay, stderr_pipe
from vfsd.supervisor.worker_socket import listen
from vfsd.transport.control_messages import (
    Content,
    PoolEvent,
    PoolFailed,
    PoolLog,
    PoolReady,
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
STOPPED: Final = "TZX"  # states of a process that is stopped or has ended


class PoolDiedError(Exception):
    """The pool is gone, and with it every file that the guest had open."""


class PoolClient:
    """One pool, from start to kill. `numbers` maps each fd of the supervisor to its number in the
    pool."""

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
        # Called out of the event loop with a PoolDiedError, or with the OperatorError of a start.
        self.on_loss: Callable[[Exception], None] = _raise
        self._patience = patience
        self._loop = loop
        self._launcher = launcher
        self._packets = Bucket(PACKETS)
        self._first: int | None = None  # pidfd of the process that makes the pool and exits
        self._ids = count(int.from_bytes(os.urandom(3), "little") << 16)
        self._answers: dict[int, Content | None] = {}
        channel.socket.setblocking(False)
        loop.register(channel.fileno(), lambda: self._report_loss(self._receive))

    @classmethod
    def begin(
        cls,
        loop: EventLoop,
        log: LogCollector,
        launcher: Launcher,
        options: Options,
        device: int,
        patience: Patience,
        prefix: str,
        answer_seconds: float,
    ) -> "PoolClient":
        """Start a pool, which is not ready yet. `prefix`: of the names of its workers' sockets.
        Raises OperatorError with the reason if it cannot be started, also if the launcher does not
        answer within `answer_seconds`."""
        ours, theirs = FdChannel.pair()
        listeners = [listen(Path(f"{prefix}-{i}")) for i in range(options.workers)]
        stderr, their_stderr = stderr_pipe()
        relay = StderrRelay(loop, log, stderr)
        segments = Segments.create(device, options.inode_limit)
        pool = cls(loop, launcher, ours, segments, listeners, relay, patience)
        pool.on_event = lambda event: _log_event(log, event)
        try:
            pool._launch(theirs.fileno(), their_stderr, answer_seconds)
        except BaseException:
            pool.kill()
            raise
        finally:
            theirs.close()
            os.close(their_stderr)
        return pool

    def has_prefix(self, prefix: str) -> bool:
        """Do the names of the pool's sockets begin with `prefix`? See begin()."""
        return any(Path(path).name.startswith(prefix) for path, _ in self.listeners)

    def has_started(self) -> bool:
        """Is the pool ready, and has the process that made it ended?"""
        return self.ready and self._first is None

    def await_ready(self) -> None:
        """Wait until the pool has started; OperatorError with the reason if it fails. There is no
        limit while the pool lives: on a slow host, or with a tenth of a CPU, a start may take any
        time."""
        what = "the start of the pool"
        try:
            self._patience.wait(self.has_started, what, self.pid, SLOW_SECONDS)
        except PoolDiedError:
            raise OperatorError("the pool of workers ended before it was ready") from None

    def _launch(self, channel: int, stderr: int, answer_seconds: float) -> None:
        listeners = [fd for _, fd in self.listeners]
        fds = [channel, stderr, *self.segments.fds(), *listeners]
        try:
            self._first = self._launcher.start_pool(fds, answer_seconds)
        except (LauncherGoneError, OSError) as error:
            raise OperatorError(f"cannot start a pool of workers: {error}") from None
        self._loop.register(self._first, self._forget_first)

    def _forget_first(self) -> None:
        """Stop watching the process that makes the pool: it has ended, or has been killed."""
        first, self._first = self._first, None
        if first is not None:
            self._loop.unregister(first)
            os.close(first)

    def kill(self) -> list[Process]:
        """Kill the pool and its workers, and release everything that was kept for the pool. Returns
        the processes that were killed: each has files of the share open until it has ended."""
        self._loop.unregister(self.channel.fileno())
        self._freeze()
        family = self._family()
        for process in family[1:]:
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
        self.segments.close()
        return family

    def _freeze(self) -> None:
        """Stop the pool. Otherwise the pool could create a worker while we look for its workers,
        and without a pid namespace that worker would outlive the pool."""
        if self.pidfd is None:
            return
        with contextlib.suppress(OSError):  # the pool is gone
            signal.pidfd_send_signal(self.pidfd, signal.SIGSTOP)
            deadline = time.monotonic() + FREEZE_SECONDS  # a pool that hangs creates no workers
            while self.pid and state_of(self.pid) not in STOPPED and time.monotonic() < deadline:
                time.sleep(0.001)

    def adopt(self, fds: Iterable[int]) -> None:
        """Give the pool copies of `fds`, and record their numbers in the pool."""
        rest = list(fds)
        while rest:
            batch, rest = rest[:MAX_FDS], rest[MAX_FDS:]
            answer = self._demand({"op": "adopt"}, batch)
            with _from_the_sandbox():
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
        with _from_the_sandbox():
            return decode_spawned(answer)

    def kill_worker(self, slot: int) -> None:
        """Have the worker of `slot` killed, and created again. This does not wait for the answer,
        so callbacks of the event loop may call it."""
        with contextlib.suppress(BlockingIOError):  # the pool hangs, and cannot kill the worker
            self._send({"id": next(self._ids), "op": "kill", "slot": slot})

    def is_stuck(self, slot: int) -> int | None:
        """The pid of the worker of `slot` if it is in state D, which no signal ends."""
        inside = self.spawn(slot)
        for process in self._descendants():
            if process.state == "D" and _pid_inside(process.pid) == inside:
                return process.pid
        return None

    def _demand(self, content: Content, fds: list[int] | None = None) -> Content:
        """Send an order that a pool of ours never refuses; PoolDiedError if it is refused."""
        answer = self._ask(content, fds)
        if (refusal := _refusal(answer)) is not None:
            raise PoolDiedError(f"the pool refused {content['op']!r}: {refusal}")
        return answer

    def _ask(self, content: Content, fds: list[int] | None = None) -> Content:
        """Send an order and wait for the answer, without a limit while the pool is alive."""
        request_id = next(self._ids)
        packet = {"id": request_id, **content}
        self._answers[request_id] = None
        self._wait(lambda: self._is_sent(packet, fds or []), content["op"])
        self._wait(lambda: self._answers[request_id] is not None, content["op"])
        answer = self._answers.pop(request_id)
        assert answer is not None
        return answer

    def _wait(self, condition: Callable[[], bool], op: str) -> None:
        assert self.pid is not None
        self._patience.wait(condition, f"the pool's answer to {op!r}", self.pid, SLOW_SECONDS)

    def _is_sent(self, packet: Content, fds: list[int]) -> bool:
        try:
            self._send(packet, fds)
        except BlockingIOError:
            return False
        return True

    def _send(self, packet: Content, fds: Sequence[int] = ()) -> None:
        try:
            self.channel.send(packet, fds)
        except BlockingIOError:
            raise
        except OSError as error:
            raise PoolDiedError(f"the pool cannot be reached: {error.strerror}") from None

    # Packets from the pool; the event loop calls these.

    def _report_loss(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except (PoolDiedError, OperatorError) as error:
            self.on_loss(error)

    def _receive(self) -> None:
        try:
            with _from_the_sandbox():
                self._take(self.channel.receive())
        except BlockingIOError:
            return
        except OSError as error:  # a pool that died with an order unread resets its channel
            raise PoolDiedError(f"the pool's channel failed: {error.strerror}") from None

    def _take(self, packet: Packet | None) -> None:
        if packet is None:
            raise PoolDiedError("the pool closed its channel")
        if not self._packets.take(1, time.monotonic()):
            raise ProtocolError(f"it sent packets without end, more than {PACKETS.burst} at once")
        request_id = packet.content.get("id")
        if request_id is None:
            self._take_event(decode_pool_event(packet.content, len(self.listeners)), packet)
        elif type(request_id) is int and request_id in self._answers:
            self._answers[request_id] = packet.content

    def _take_event(self, event: PoolEvent, packet: Packet) -> None:
        if isinstance(event, PoolReady | PoolFailed) and self.ready:
            raise ProtocolError("it reported a second time that it is ready or has failed")
        if isinstance(event, PoolFailed):
            raise OperatorError(event.error)
        if isinstance(event, PoolReady) and packet.pid:
            self.pid, self.opens_handles = packet.pid, event.opens_handles
            self.watch(os.pidfd_open(packet.pid))
            self.ready = True
        self.on_event(event)

    def watch(self, pidfd: int) -> None:
        """Report a PoolDiedError out of the event loop when the process behind `pidfd` is gone."""
        self.pidfd = pidfd
        self._loop.register(pidfd, lambda: self._report_loss(self._died))

    def _died(self) -> NoReturn:
        raise PoolDiedError("the pool died")

    def _descendants(self) -> list[Process]:
        """The descendants of the pool. Empty once the pool has ended: another process may have its
        pid then."""
        if self.pid is None or self.pidfd is None:
            return []
        found = descendants(self.pid)
        return [] if _has_ended(self.pidfd) else found  # alive now, so alive while we looked

    def _family(self) -> list[Process]:
        """The pool and its descendants; empty once the pool has ended."""
        below = self._descendants()
        with contextlib.suppress(OSError):
            if self.pid is not None and self.pidfd is not None:
                return [process_of(self.pid), *below]
        return []

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


@contextlib.contextmanager
def _from_the_sandbox() -> Iterator[None]:
    """Turn every error in what the pool sent into a PoolDiedError: it ends that pool, and not the
    supervisor."""
    try:
        yield
    except (ProtocolError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise PoolDiedError(f"the pool broke the protocol: {error}") from None


def _raise(error: Exception) -> NoReturn:
    raise error


def _refusal(answer: Content) -> str | None:
    with _from_the_sandbox():
        return decode_refusal(answer)


def _pid_inside(pid: int) -> int | None:
    """The pid of a process in its innermost pid namespace; None if the process is gone."""
    with contextlib.suppress(OSError, LookupError, ValueError):
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        return int(status.partition("\nNSpid:")[2].splitlines()[0].split()[-1])
    return None


def _log_event(log: LogCollector, event: PoolEvent) -> None:
    if isinstance(event, PoolLog):
        log.write(event.level, event.text, "pool")


def _has_ended(pidfd: int, seconds: float = 0.0) -> bool:
    """Has this process ended, or does it end within `seconds`?"""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
