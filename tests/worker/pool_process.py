# SPDX-License-Identifier: Apache-2.0
"""A real pool with its holder, started as the supervisor starts them, to which tests send
orders. `pid` is the holder's."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tests.waiting import wait_until
from vfsd.supervisor.succession import KEY_BYTES
from vfsd.supervisor.worker_link import WorkerLink
from vfsd.transport.fd_channel import FdChannel
from vfsd.transport.job import Filesystem
from vfsd.transport.native import ffi, lib
from vfsd.transport.shared_memory import create_blob, create_segment, map_segment

CAPACITY: Final = 1 << 12
SECONDS: Final = 10.0
Order = tuple[dict[str, Any], tuple[int, ...]]  # content, fds

FS: Final[dict[str, Any]] = asdict(
    Filesystem(
        cache="auto",
        entry_timeout=1.0,
        attr_timeout=1.0,
        negative_timeout=0.0,
        lock_wait=None,
        inode_file_handles="never",
        xattr=True,
        posix_acl="never",
        security_label="never",
        readdirplus=True,
        killpriv_v2_asked=False,
        translate_uid=(),
        translate_gid=(),
        xattrmap="",
    )
)


def key_pipe() -> int:
    """A pipe with a key for the broker of file handles."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.write(writer, os.urandom(KEY_BYTES))
    os.close(writer)
    return reader


def job_content(**changes: Any) -> dict[str, Any]:
    """The content of a job that decode() accepts."""
    return {
        "name": "test",
        "shared_dir": "/tmp",
        "sandbox": "namespace",
        "seccomp": "kill",
        "slots": 2,
        "log_level": "debug",
        "poll_us": 0,
        "thread_pool_size": 2,
        "modcaps": "",
        "userns": False,
        "supervisor": os.geteuid(),
        "worker_faults": 10,
        "uid_map": [],
        "gid_map": [],
        "queue_cpus": [],
        "inode_capacity": CAPACITY,
        "file_capacity": CAPACITY,
        "fs": FS,
    } | changes


_AS_USER: Final = """
import sys
from tests.worker.sandboxed import become
from vfsd.worker.pool_start import main
become(int(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
"""


class PoolProcess:
    """One pool with `slots` worker slots; close() ends the pool and its workers. `stderr`: an fd
    that the pool gets as its stderr, instead of the pipe whose reading end is self.stderr."""

    def __init__(
        self,
        folder: Path,
        uid: int | None = None,
        also_pass: Sequence[int] = (),
        stderr: int | None = None,
        **job: Any,
    ) -> None:
        self.slots: int = job.get("slots", 2)
        self.channel, theirs = FdChannel.pair()
        self.channel.socket.settimeout(SECONDS)
        workers_bytes = ffi.sizeof("struct worker_table")
        self._segments = {
            "device": create_segment("device", ffi.sizeof("struct device_state")),
            "inodes": create_segment("inodes", lib.inode_table_bytes(CAPACITY)),
            "files": create_segment("files", lib.file_table_bytes(CAPACITY)),
            "rings": create_segment("rings", lib.records_bytes()),
            "workers": create_segment("workers", workers_bytes),
        }
        self.paths = [str(folder / f"worker-{i}") for i in range(self.slots)]
        listeners = [_listen(path) for path in self.paths]
        root = os.open(folder, os.O_PATH)
        device_bytes = ffi.sizeof("struct device_state")
        self._mapped = map_segment(self._segments["device"], device_bytes)
        self.device = _cast("struct device_state *", self._mapped)
        self.device.layout = lib.DEVICE_STATE_LAYOUT
        workers = map_segment(self._segments["workers"], workers_bytes)
        self.rows = _cast("struct worker_table *", workers).rows
        content = job_content(shared_dir=str(folder), **job)
        blob = create_blob("job", json.dumps(content).encode())
        self.pid: int | None = None
        self._pidfd: int | None = None
        self._ids = 0
        self.events: list[dict[str, Any]] = []
        ours, their_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [str(fd) for fd in (their_end.fileno(), blob, root)]
        command = [sys.executable, "-I", "-m", "vfsd.worker", *arguments]
        if uid is not None:  # no exec: that user may be unable to reach this interpreter
            command = [sys.executable, "-c", _AS_USER, str(uid), *arguments]
        self.stderr, their_stderr = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # The supervisor blocks these signals as well, because it waits for them by other means.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])
        pool_stderr = their_stderr if stderr is None else stderr
        with subprocess.Popen(
            command,
            pass_fds=[blob, root, their_end.fileno(), *also_pass],
            env={"LEAK": "secret"},
        ):
            their_end.close()
            key = key_pipe()
            fds = [key, theirs.fileno(), pool_stderr, *self._segments.values(), *listeners]
            socket.send_fds(ours, [b"\0"], fds)
            os.close(key)
            _, (self._first,), _, _ = socket.recv_fds(ours, 4, 1)
            ours.close()  # the template ends
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(blob)
        os.close(root)
        os.close(their_stderr)
        theirs.close()
        for listener in listeners:
            os.close(listener)

    def first_event(self) -> dict[str, Any]:
        """The first event of the pool, "ready" or "failed"; waits until the process that was
        started has ended, since the pool then runs in another process."""
        packet = self.channel.receive()
        assert packet is not None
        self._await_first()
        if packet.content.get("event") == "ready":
            assert packet.pid is not None
            self.pid = packet.pid
            self._pidfd = os.pidfd_open(packet.pid)
        return packet.content

    def _await_first(self) -> None:
        """Wait until the first process has ended, and reap it."""
        if self._first >= 0:
            assert select.select([self._first], [], [], SECONDS)[0]
            os.waitid(os.P_PIDFD, self._first, os.WEXITED)
            os.close(self._first)
            self._first = -1

    def start(self) -> "PoolProcess":
        assert self.first_event()["event"] == "ready"
        return self

    def ask(self, op: str, passed: tuple[int, ...] = (), **content: Any) -> dict[str, Any]:
        """Send an order and return its answer; events that arrive before it go to self.events."""
        return self.await_answer(self.order(op, passed, **content))

    def order(self, op: str, passed: tuple[int, ...] = (), **content: Any) -> Order:
        """Send an order."""
        self._ids += 1
        order = {"op": op, "id": self._ids, **content}, passed
        self.channel.send(*order)
        return order

    def await_answer(self, order: Order) -> dict[str, Any]:
        """The answer to an order, which is sent again whenever a pool has been replaced."""
        while True:
            packet = self.channel.receive()
            assert packet is not None
            if packet.content.get("id") == order[0]["id"]:
                return packet.content
            self.events.append(packet.content)
            if packet.content.get("event") == "pool-replaced":
                self.channel.send(*order)

    def event(self, name: str) -> dict[str, Any]:
        """The next event of this name."""
        while True:
            for event in self.events:
                if event.get("event") == name:
                    self.events.remove(event)
                    return event
            packet = self.channel.receive()
            assert packet is not None
            self.events.append(packet.content)

    def processes(self) -> dict[str, int]:
        """Title -> pid, in this process's namespace, of the holder, the pool and its workers. A
        process that has just been created has the title of its creator, and is left out."""
        assert self.pid is not None
        found: dict[str, int] = {}
        for pid in (*reversed(self.children()), self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just died
                found[Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")] = pid
        return found

    def children(self) -> list[int]:
        """The pids of the pool, the workers and the processes that close files, the oldest
        first."""
        assert self.pid is not None
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(child) for child in text.split()]

    def pool_pid(self) -> int:
        """The pid of the pool, as soon as it has its title."""
        found: list[int] = []

        def is_there() -> bool:
            found[:] = [pid for name, pid in self.processes().items() if name == "vfsd: test pool"]
            return bool(found)

        wait_until(is_there, SECONDS, "there is a pool")
        return found[0]

    def worker_pid(self, slot: int) -> int:
        """The pid of a worker in this process's namespace."""
        title = f"vfsd: test worker {slot}"
        return next(pid for name, pid in self.processes().items() if name.startswith(title))

    def status(self, pid: int) -> dict[str, str]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def fds(self) -> dict[int, str]:
        """Number -> link in /proc of each fd in the table of the sandbox."""
        found = {}
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found[int(path.name)] = str(path.readlink())
        return found

    def close(self) -> None:
        self.channel.close()
        if self._pidfd is not None:
            ended, _, _ = select.select([self._pidfd], [], [], SECONDS)
            if not ended:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            assert ended, "the pool did not end when its channel was closed"
        if self._first >= 0:
            signal.pidfd_send_signal(self._first, signal.SIGKILL)
            self._await_first()
        os.close(self.stderr)
        for fd in self._segments.values():
            os.close(fd)
        lib.shared_memory_unmap(self._mapped, ffi.sizeof("struct device_state"))


class Link:
    """The supervisor's end of one worker's control channel."""

    def __init__(self, path: str) -> None:
        self.end = WorkerLink(path)
        self._ids = 0

    def receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            content = self.end.receive()
            if content is not None:
                return content
            self.end.tick()
            select.select([self.end.fileno()], [], [], 0.05)
        raise TimeoutError("the worker says nothing")

    def event(self, name: str) -> dict[str, Any]:
        while (content := self.receive()).get("event") != name:
            pass
        return content

    def send(self, content: dict[str, Any]) -> None:
        """Send a command once and wait for no answer; the worker has said hello before."""
        self._ids += 1
        self.end.command(self._ids, content, SECONDS)
        self.end.end(self._ids)

    def command(self, content: dict[str, Any]) -> dict[str, Any]:
        self._ids += 1
        self.end.command(self._ids, content, SECONDS)
        while (answer := self.receive()).get("id") != self._ids:
            pass
        self.end.end(self._ids)
        return answer

    def close(self) -> None:
        self.end.close()


def _cast(kind: str, pointer: Any) -> Any:
    return ffi.cast(kind, pointer)


def _listen(path: str) -> int:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    sock.listen(8)
    return sock.detach()
