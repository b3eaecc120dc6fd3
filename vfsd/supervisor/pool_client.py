# SPDX-License-Identifier: Apache-2.0
"""The supervisor's end of one pool: starts it, gives it fds, has workers created, kills it.

Trust: the pool is in the sandbox. Its answers are checked; what it says about itself goes into the
log and nowhere else.
"""

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import vfsd
from vfsd.supervisor.descendants import descendants
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.job import Segments, create_job
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.options import Options
from vfsd.transport.control_messages import (
    Content,
    PoolEvent,
    PoolFailed,
    PoolLog,
    PoolReady,
    decode_fd_numbers,
    decode_pool_event,
    text,
)
from vfsd.transport.errors import OperatorError, ProtocolError
from vfsd.transport.fd_channel import MAX_FDS, FdChannel, Packet

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
        self.ended: set[int] = set()  # slots whose worker is not created again
        self.on_event: Callable[[PoolEvent], None] = lambda _: None
        self._loop = loop
        self._first: int | None = None  # pid of who makes the pool, and exits then
        self._ids = count(int.from_bytes(os.urandom(3), "little") << 16)
        self._answers: dict[int, Content | None] = {}
        channel.socket.setblocking(False)
        loop.register(channel.fileno(), self._receive)

    @classmethod
    def start(cls, loop: EventLoop, log: LogCollector, options: Options, runtime: str) -> "Pool":
        """Start a pool and wait until it is isolated and ready, or say why not (OperatorError)."""
        ours, theirs = FdChannel.pair()
        listeners = [_listen(Path(runtime) / f"worker-{i}") for i in range(options.workers)]
        pool = cls(loop, ours, Segments.create(), listeners)
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
        for fd in self.segments.fds():
            os.close(fd)

    def adopt(self, fds: Iterable[int]) -> None:
        """Give the pool copies of `fds` and learn their numbers there."""
        rest = list(fds)
        while rest:
            batch, rest = rest[:MAX_FDS], rest[MAX_FDS:]
            answer = self._demand({"op": "adopt"}, batch)
            self.numbers |= zip(batch, decode_fd_numbers(answer, len(batch)), strict=True)

    def drop(self, fds: Iterable[int]) -> None:
        """Have the pool close its copies of `fds`."""
        numbers = [self.numbers.pop(fd) for fd in fds]
        if numbers and "error" in self._ask({"op": "drop", "fds": numbers}):
            # A supervisor that died here had dropped them, or some of them, already.
            for number in numbers:
                self._ask({"op": "drop", "fds": [number]})

    def spawn(self, slot: int) -> object:
        """Have the worker of `slot` created if there is none; its pid inside the sandbox, 0 if the
        slot has ended."""
        answer = self._demand({"op": "spawn", "slot": slot})
        self.spawned.add(slot)
        if answer.get("ended") is True:
            self.ended.add(slot)
        return answer.get("pid")

    def _demand(self, content: Content, fds: list[int] | None = None) -> Content:
        """Ask for what cannot be refused."""
        answer = self._ask(content, fds)
        if "error" in answer:
            raise PoolDiedError(f"the pool refused {content['op']!r}: {text(answer, 'error')}")
        return answer

    def _ask(self, content: Content, fds: list[int] | None = None) -> Content:
        request_id = next(self._ids)
        self._answers[request_id] = None
        try:
            self.channel.send({"id": request_id, **content}, fds or [])
        except OSError as error:
            raise PoolDiedError(f"the pool cannot be reached: {error.strerror}") from None
        answered = self._loop.wait(lambda: self._answers[request_id] is not None, ANSWER_SECONDS)
        answer = self._answers.pop(request_id)
        if not answered or answer is None:
            raise PoolDiedError(f"the pool did not answer {content['op']!r}")
        return answer

    def kill_worker(self, pid: object) -> None:
        """Kill the worker that has this pid inside the sandbox; the pool creates the next one."""
        for outside in self._descendants():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{outside}/status").read_text()
                if f"\nNSpid:\t{outside}\t{pid}\n" in status or outside == pid:
                    os.kill(outside, signal.SIGKILL)

    # What comes from the pool; called by the event loop.

    def _receive(self) -> None:
        try:
            self._take(self.channel.receive())
        except BlockingIOError:
            return
        except ProtocolError as error:
            raise PoolDiedError(f"the pool broke the protocol: {error}") from None
        except OSError as error:  # a pool that died with an order unread resets its channel
            raise PoolDiedError(f"the pool's channel: {error.strerror}") from None

    def _take(self, packet: Packet | None) -> None:
        if packet is None:
            raise PoolDiedError("the pool closed its channel")
        for fd in packet.fds:
            os.close(fd)  # a pool has nothing to give
        request_id = packet.content.get("id")
        if request_id is None:
            self._take_event(decode_pool_event(packet.content), packet)
        elif type(request_id) is int and request_id in self._answers:
            self._answers[request_id] = packet.content

    def _take_event(self, event: PoolEvent, packet: Packet) -> None:
        if isinstance(event, PoolFailed):
            raise OperatorError(event.error)
        if isinstance(event, PoolReady) and not self.ready and packet.pid:
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
            "ended": sorted(self.ended),
        }

    @classmethod
    def restore(cls, loop: EventLoop, row: dict[str, Any]) -> "Pool":
        listeners = [(str(path), int(fd)) for path, fd in row["listeners"]]
        segments = Segments(**row["segments"])
        pool = cls(loop, FdChannel.from_fd(row["channel"]), segments, listeners)
        pool.pid = row["pid"]
        pool.watch(row["pidfd"])
        pool.numbers = dict(row["numbers"])
        pool.spawned = set(row["spawned"])
        pool.ended = set(row["ended"])
        pool.ready = True
        return pool


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
