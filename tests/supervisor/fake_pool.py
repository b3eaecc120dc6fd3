# SPDX-License-Identifier: Apache-2.0
"""A pool that speaks the protocols of the supervisor's two channels and serves no guest. It is run
like vfsd.worker, and its processes are forked from a template as well.

For each order it writes a line of JSON to the file `report` in its job's shared_dir, with the state
of the device that a worker sees, so that a test knows what has arrived in the sandbox.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from vfsd.transport.channel import WorkerEnd
from vfsd.transport.fd_channel import FdChannel
from vfsd.transport.job import JobFds
from vfsd.transport.native import ffi, lib
from vfsd.transport.process_title import setproctitle
from vfsd.transport.shared_memory import map_segment, read_blob
from vfsd.worker import template

REPORT = "report"


class FakePool:
    def __init__(self, job: dict[str, Any], fds: JobFds) -> None:
        self.job = job
        self.fds = fds
        self.channel = FdChannel.from_fd(fds.channel)
        self.workers: dict[int, int] = {}  # pid -> slot
        self.adopted: set[int] = set()

    def run(self) -> None:
        self.channel.send({"event": "ready"})
        while True:
            select.select([self.channel.fileno()], [], [], 0.02)
            self.reap()
            with contextlib.suppress(BlockingIOError):
                self.channel.socket.setblocking(False)
                packet = self.channel.receive()
                if packet is None:
                    return
                self.answer(packet.content, packet.fds)

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                slot = self.workers.pop(ended[0])
                self.spawn(slot)
                event = {"event": "worker-died", "slot": slot, "status": 1, "respawned": True}
                self.channel.send(event)

    def answer(self, content: dict[str, Any], fds: tuple[int, ...]) -> None:
        self.report(content | {"received": list(fds)})
        answer: dict[str, Any] = {"id": content["id"]}
        if content["op"] == "adopt":
            answer["fds"] = list(fds)
            self.adopted |= set(fds)
        elif content["op"] == "drop" and not set(content["fds"]) <= self.adopted:
            answer["error"] = "fds to drop that were never adopted"
        elif content["op"] == "drop":
            self.adopted -= set(content["fds"])
            for fd in content["fds"]:
                os.close(fd)
        elif content["op"] == "spawn":
            pids = {slot: pid for pid, slot in self.workers.items()}
            answer["pid"] = pids.get(content["slot"]) or self.spawn(content["slot"])
        elif content["op"] == "kill":
            for pid in [pid for pid, slot in self.workers.items() if slot == content["slot"]]:
                os.kill(pid, signal.SIGKILL)
        self.channel.send(answer)

    def spawn(self, slot: int) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                FakeWorker(self, slot).run()
            finally:
                os._exit(1)
        self.workers[pid] = slot
        return pid

    def report(self, content: dict[str, Any]) -> None:
        path = os.path.join(self.job["shared_dir"], REPORT)  # noqa: PTH118
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, json.dumps(content).encode() + b"\n")
        os.close(fd)


class FakeWorker:
    def __init__(self, pool: FakePool, slot: int) -> None:
        self.pool = pool
        self.slot = slot
        size = ffi.sizeof("struct device_state")
        memory = map_segment(pool.fds.device, size, writable=False)
        self.device: Any = ffi.cast("struct device_state *", memory)
        self.end = WorkerEnd(pool.fds.listeners[slot])

    def run(self) -> None:
        self.end.send({"event": "hello", "pid": os.getpid()})
        self.end.send({"log": "here I am", "level": "info"})
        while True:
            content = self.end.receive()
            if content is None:
                select.select([self.end.fileno()], [], [], 0.5)
            elif content["command"] == "adopt":
                self.adopt(content)

    def adopt(self, content: dict[str, Any]) -> None:
        generation = lib.device_state_generation(self.device)
        rows = [self.row(i) for i in range(self.device.vring_count)]
        regions = [self.device.regions[i].gpa for i in range(self.device.region_count)]
        seen = {"slot": self.slot, "pid": os.getpid(), "vrings": rows, "regions": regions}
        self.pool.report(seen)
        vrings = {str(row["index"]): {"last_avail": 17, "error": None} for row in rows}
        self.end.send({"id": content["id"], "generation": generation, "vrings": vrings})

    def row(self, index: int) -> dict[str, Any]:
        vring = self.device.vrings[index]
        fields = ("running", "start", "size", "desc", "kick_fd", "call_fd", "worker")
        return {"index": index} | {name: getattr(vring, name) for name in fields}


def main() -> None:
    sock, blob, root = map(int, sys.argv[1:4])
    job = json.loads(read_blob(blob))
    setproctitle(f"vfsd: {job['name']} template")
    template.serve(socket.socket(fileno=sock), lambda passed: live(job, root, passed))


def live(job: dict[str, Any], root: int, passed: Sequence[int]) -> None:
    setproctitle("fake pool")
    fds = JobFds.of(root, passed, job["slots"])
    os.dup2(fds.stderr, 2)
    os.setresuid(-1, -1, job["supervisor"])
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pool = FakePool(job, fds)
    pool.report({"job": job})
    pool.run()


if __name__ == "__main__":
    main()
