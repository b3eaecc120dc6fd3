# SPDX-License-Identifier: Apache-2.0
"""The supervisor's end of one pool: starts it, gives it fds, has workers created, kills it.

Trust: the pool is in the sandbox, and so is whoever else writes to its channel: workers share its
fd table. Its answers are checked; what it says about itself goes into the log and nowhere else.
Whatever it says wrongly becomes a PoolDiedError, in one place: _from_the_sandbox().
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import vfsd
from vfsd.supervisor.descendants import descendants
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.job import Segments, create_job
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.options import Options
from vfsd.supervisor.patience import Patience, state_of
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

# As isolated as with -I, which would ignore PYTHONPATH: nothing of our environment is passed on,
# nor the folder of the script, or the current one, that Python has put first.
# -S: what an installation's *.pth files import would stay in each worker.
_PATHS: Final = sys.path if sys.flags.safe_path else sys.path[1:]
POOL_COMMAND: Sequence[str] = (sys.executable, "-P", "-S", "-m", "vfsd.worker")
POOL_ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONPATH": ":".join([*filter(os.path.isabs, _PATHS), str(Path(vfsd.__file__).parents[1])]),
}
START_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 10.0  # a pool waits for a worker that starts, for 5 of them
PACKETS: Final = Rate(burst=2000, per_second=200)  # a pool sends a few for each death


class PoolDiedError(Exception):
    """The pool is gone, and with it every file it held open."""


class Pool:
    """One pool, from start to kill. `numbers` maps the supervisor's fds to the pool's."""

    def __init__(
        self,
        loop: EventLoop,
        channel: FdChannel,
        segments: Segments,
        listeners: list[tuple[str, int]],
    ) -> None:
        self.channel = channel
        self.segments = segments
        self.listeners = listeners  # by slot: the path that workers can be reached at, its socket
        self.pid: int | None = None
        self.pidfd: int | None = None
        self.ready = False
        self.numbers: dict[int, int] = {}
        self.spawned: set[int] = set()
        self.on_event: Callable[[PoolEvent], None] = lambda _: None
        self.patience: Patience  # once it is ready
        self._loop = loop
        self._packets = Bucket(PACKETS)
        self._first: int | None = None  # pid of who makes the pool, and exits then
        self._ids = count(int.from_bytes(os.urandom(3), "little") << 16)
        self._answers: dict[int, Content | None] = {}
        channel.socket.setblocking(False)
        loop.register(channel.fileno(), self._receive)

    @classmethod
    def start(
        cls, loop: EventLoop, log: LogCollector, options: Options, runtime: str, device: int
    ) -> "Pool":
        """Start a pool and wait until it is isolated and ready, or say why not (OperatorError)."""
        ours, theirs = FdChannel.pair()
        listeners = [_listen(Path(runtime) / f"worker-{i}") for i in range(options.workers)]
        pool = cls(loop, ours, Segments.create(device), listeners)
        pool.on_event = lambda event: _log_event(log, event)
        try:
            pool._execute(log.name, options, theirs.fileno())
            theirs.close()
            pool._await_ready()
        except BaseException:
            pool.kill()
            raise
        finally:
            theirs.close()
        return pool

    def _await_ready(self) -> None:
        try:
            ready = self._loop.wait(lambda: self.ready, START_SECONDS)
        except PoolDiedError:
            raise OperatorError("the pool of workers ended before it was ready") from None
        if not ready:
            raise OperatorError(f"the pool of workers is not ready after {START_SECONDS:.0f} s")

    def _execute(self, name: str, options: Options, channel: int) -> None:
        fds: dict[str, Any] = {
            "channel": channel,
            "device": self.segments.device,
            "inodes": self.segments.inodes,
            "files": self.segments.files,
            "rings": self.segments.rings,
            "workers": self.segments.workers,
            "listeners": [fd for _, fd in self.listeners],
        }
        job = create_job(name, options, fds)
        passed = [job, channel, *self.segments.fds(), *fds["listeners"]]
        try:
            self._first = _spawn([*POOL_COMMAND, str(job)], passed)
        finally:
            os.close(job)

    def kill(self) -> None:
        """End the pool and its workers at once and give back everything kept for it."""
        self._loop.unregister(self.channel.fileno())
        for pid in self._descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._first is not None:
            os.kill(self._first, signal.SIGKILL)
            os.waitpid(self._first, 0)
        if self.pidfd is not None:
            self._loop.unregister(self.pidfd)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.close(self.pidfd)
        self.channel.close()
        for path, fd in self.listeners:
            os.close(fd)
            Path(path).unlink(missing_ok=True)
        self.segments.close()

    def adopt(self, fds: Iterable[int]) -> None:
        """Give the pool copies of `fds` and learn their numbers there."""
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
            # A supervisor that died here had dropped them, or some of them, already.
            for number in numbers:
                self._ask({"op": "drop", "fds": [number]})

    def spawn(self, slot: int) -> int:
        """Have the worker of `slot` created if there is none; its pid inside the sandbox."""
        answer = self._demand({"op": "spawn", "slot": slot})
        self.spawned.add(slot)
        with _from_the_sandbox():
            return decode_spawned(answer)

    def kill_worker(self, slot: int) -> None:
        """Have the worker of `slot` killed, and created again. Waits for nothing, so a callback of
        the event loop may call this."""
        with contextlib.suppress(BlockingIOError):  # the pool hangs: it kills nobody now
            self._send({"id": next(self._ids), "op": "kill", "slot": slot})

    def is_stuck(self, slot: int) -> int | None:
        """The pid of the worker of `slot` if it is in state D, which no signal ends."""
        inside = self.spawn(slot)
        for outside in self._descendants():
            if state_of(outside) == "D" and _pid_inside(outside) == inside:
                return outside
        return None

    def _demand(self, content: Content, fds: list[int] | None = None) -> Content:
        """Ask for what cannot be refused."""
        answer = self._ask(content, fds)
        if (refusal := _refusal(answer)) is not None:
            raise PoolDiedError(f"the pool refused {content['op']!r}: {refusal}")
        return answer

    def _ask(self, content: Content, fds: list[int] | None = None) -> Content:
        """Send an order and wait for the answer, however long that takes a pool that is alive."""
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
        self.patience.wait(condition, f"the pool's answer to {op!r}", self.pid, ANSWER_SECONDS)

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

    # What comes from the pool; called by the event loop.

    def _receive(self) -> None:
        try:
            with _from_the_sandbox():
                self._take(self.channel.receive())
        except BlockingIOError:
            return
        except OSError as error:  # a pool that died with an order unread resets its channel
            raise PoolDiedError(f"the pool's channel: {error.strerror}") from None

    def _take(self, packet: Packet | None) -> None:
        if packet is None:
            raise PoolDiedError("the pool closed its channel")
        if not self._packets.take(1, time.monotonic()):
            raise ProtocolError("packets without end")
        request_id = packet.content.get("id")
        if request_id is None:
            self._take_event(decode_pool_event(packet.content, len(self.listeners)), packet)
        elif type(request_id) is int and request_id in self._answers:
            self._answers[request_id] = packet.content

    def _take_event(self, event: PoolEvent, packet: Packet) -> None:
        if isinstance(event, PoolReady | PoolFailed) and self.ready:
            raise ProtocolError("what only a pool that starts says, from one that is ready")
        if isinstance(event, PoolFailed):
            raise OperatorError(event.error)
        if isinstance(event, PoolReady) and packet.pid:
            self.pid = packet.pid
            self.watch(os.pidfd_open(packet.pid))
            if self._first is not None:  # it has made the pool and exits
                _reap(self._first, START_SECONDS)
                self._first = None
            self.ready = True
        self.on_event(event)

    def watch(self, pidfd: int) -> None:
        """Raise PoolDiedError out of the event loop when the process behind `pidfd` is gone."""
        self.pidfd = pidfd
        self._loop.register(pidfd, self._died)

    def _died(self) -> None:
        raise PoolDiedError("the pool died")

    def _descendants(self) -> list[int]:
        return [] if self.pid is None else descendants(self.pid)

    # Handing over to another supervisor.

    def snapshot(self) -> dict[str, Any]:
        return {
            "channel": self.channel.fileno(),
            "segments": vars(self.segments),
            "listeners": self.listeners,
            "pid": self.pid,
            "pidfd": self.pidfd,
            "numbers": list(self.numbers.items()),
            "spawned": sorted(self.spawned),
        }

    @classmethod
    def restore(cls, loop: EventLoop, row: dict[str, Any]) -> "Pool":
        listeners = [(str(path), int(fd)) for path, fd in row["listeners"]]
        segments = Segments(**row["segments"])
        pool = cls(loop, FdChannel.of_supervisor(row["channel"]), segments, listeners)
        pool.pid = row["pid"]
        pool.watch(row["pidfd"])
        pool.numbers = dict(row["numbers"])
        pool.spawned = set(row["spawned"])
        pool.ready = True
        return pool


@contextlib.contextmanager
def _from_the_sandbox() -> Iterator[None]:
    """What the pool said is looked at: whatever is wrong with it ends that pool, and no more."""
    try:
        yield
    except (ProtocolError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise PoolDiedError(f"the pool broke the protocol: {error}") from None


def _refusal(answer: Content) -> str | None:
    with _from_the_sandbox():
        return decode_refusal(answer)


def _pid_inside(pid: int) -> int | None:
    """The pid that a process has in its innermost pid namespace; None if it is gone."""
    with contextlib.suppress(OSError, LookupError, ValueError):
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        return int(status.partition("\nNSpid:")[2].splitlines()[0].split()[-1])
    return None


def _log_event(log: LogCollector, event: PoolEvent) -> None:
    if isinstance(event, PoolLog):
        log.write(event.level, event.text, "pool")


def _spawn(command: list[str], fds: Iterable[int]) -> int:
    """Execute a command with these fds and our stderr; what else it inherits is for it to close.

    Not by subprocess: for this one call it would take 0.3 MiB in keeper and supervisor.
    """
    return os.posix_spawn(
        command[0],
        command,
        POOL_ENVIRONMENT,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds),  # to itself: it is inherited
        ],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them
    )


def _reap(pid: int, seconds: float) -> None:
    """Wait for a child's end; TimeoutError if that does not come."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            raise TimeoutError(f"process {pid} does not end")
    finally:
        os.close(pidfd)
    os.waitpid(pid, 0)


def _listen(path: Path) -> tuple[str, int]:
    """A listening unix socket for one worker slot: its path and fd."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(str(path))
            sock.listen(8)
        except OSError as error:
            raise OperatorError(
                f"cannot make the socket '{path}': {error.strerror or error};"
                " point TMPDIR at another folder"
            ) from None
        return str(path), sock.detach()
