# SPDX-License-Identifier: Apache-2.0
"""A pool with workers that can be taken over: then they do what a file in the share says.

A worker that starts and finds `attack-SLOT` in the share removes the file, makes the attack that
the file names, reports its outcome and ends; the next worker of the slot is honest. The workers
here have the fds that an attacker has in a real worker: the listener of the slot, the pool's
channel and every segment.
"""

import json
import os
import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.supervisor import fake_pool
from vfsd.transport.shared_memory import map_segment
from vfsd.transport.zmtp import OPENING, encode_message

MIB = 1 << 20
GONE = (BrokenPipeError, ConnectionResetError)
Parts = Iterator[bytes]


class TakenOver:
    """The attacks: what a guest's program does in a worker that it has taken over."""

    def __init__(self, pool: fake_pool.FakePool, slot: int) -> None:
        self.fds = asdict(pool.fds)
        self.channel = pool.channel.socket
        self.listener = socket.socket(fileno=os.dup(self.fds["listeners"][slot]))
        self.listener.setblocking(True)
        self.chance = random.Random(slot)  # noqa: S311

    # Attacks on the link between supervisor and worker.

    def flood(self, data: Callable[[], Parts], size: int, seconds: float) -> dict[str, Any]:
        """Send endless data, connection after connection, until the supervisor has received `size`
        bytes or `seconds` are over."""
        sent = connections = 0
        until = time.monotonic() + seconds
        while sent < size and time.monotonic() < until:
            self.listener.settimeout(max(0.01, until - time.monotonic()))
            with suppress(TimeoutError, *GONE):
                connection, _ = self.listener.accept()
                connections += 1
                with connection:
                    connection.settimeout(1)
                    for part in data():
                        if sent >= size or time.monotonic() > until:
                            break
                        rest = memoryview(part)
                        while rest:
                            taken = connection.send(rest)
                            sent, rest = sent + taken, rest[taken:]
        return {"sent": sent, "connections": connections}

    def inputs(self, messages: Callable[[], Iterator[bytes]], count: int) -> dict[str, Any]:
        """Send generated inputs, a few on each connection; the last input of a connection breaks
        the protocol."""
        sent = connections = 0
        while sent < count:
            connection, _ = self.listener.accept()
            connections += 1
            with connection, suppress(TimeoutError, *GONE):
                connection.settimeout(5)
                for data in messages():
                    connection.sendall(data)
                    sent += 1
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
        return {"sent": sent, "connections": connections}

    # Attacks on the pool's channel.

    def packets(self, *packets: tuple[bytes, int]) -> dict[str, Any]:
        """Send packets; each of them is given as its data and its number of fds."""
        with suppress(*GONE):
            for data, fds in packets:
                select.select([], [self.channel], [])
                socket.send_fds(self.channel, [data], [0] * fds)
        return {"sent": len(packets)}

    # Attacks on the segments.

    def scribble(self) -> dict[str, Any]:
        """Fill the workers' segments with random bytes, and try to write to the device segment."""
        refused = 0
        device = self.fds["device"]
        again = os.open(f"/proc/self/fd/{device}", os.O_RDWR)
        for fd in (device, again):
            try:
                os.pwrite(fd, b"\xff" * 64, 0)
            except PermissionError:
                refused += 1
            try:
                map_segment(fd, 4096)
            except PermissionError:
                refused += 1
        for name in ("inodes", "files", "rings", "workers"):
            size = min(MIB, os.fstat(self.fds[name]).st_size)
            os.pwrite(self.fds[name], self.chance.randbytes(size), 0)
        return {"refused": refused}


def endless_parts() -> Parts:
    yield OPENING
    while True:
        yield b"\x01\xff" + bytes(255) + (b"\x01\xff" + bytes(255)) * 1000


def endless_greeting() -> Parts:
    while True:
        yield b"\xff" + bytes(65535)


def endless_frame() -> Parts:
    yield OPENING + b"\x02" + (1 << 40).to_bytes(8, "big")
    while True:
        yield bytes(65536)


def endless_command() -> Parts:
    yield OPENING[:64]
    while True:
        yield OPENING[64:] * 1000


def endless_answers() -> Parts:
    """Valid answers to no command that was sent."""
    yield OPENING
    while True:
        yield encode_message(b'{"id":1,"generation":2,"vrings":{}}') * 1000


def endless_logs() -> Parts:
    """Valid log lines, no two of them of one kind."""
    yield OPENING
    number = 0
    while True:
        lines = []
        for _ in range(100):
            number += 1
            word = "".join(chr(97 + int(digit)) for digit in str(number))
            content = {"log": word + "\0" * 1000, "level": "error"}
            lines.append(encode_message(json.dumps(content).encode()))
        yield b"".join(lines)


VALUES: tuple[Any, ...] = (
    0, 1, 2, 16, 200, -1, 65536, 1 << 31, 1 << 32, 1 << 63, 10**400, 1e308, True, None, "", "1",
    "\ud800", "\0\x1b[2J", "x" * 5000, [], {}, [[]], {"1": {"last_avail": 70000}},
    {"0": {"last_avail": 1, "error": "\n"}}, {"99999999999": {}}, {"-1": 0}, ["ready"],
    "info", "error", "ready", "failed", "hello", "ring-broken", "worker-died",
)  # fmt: skip
KEYS = (
    "id", "event", "log", "level", "vring", "vrings", "generation", "pid", "slot", "signal",
    "status", "error", "fds", "reason", "respawned",
)  # fmt: skip
BODIES = (b"", b"{", b"[]", b'{"a":NaN}', b"[" * 60000, b'{"id":' + b"9" * 5000 + b"}", b"\xff\xfe")


def any_body(chance: random.Random) -> bytes:
    """A message of random JSON, or of random bytes."""
    if chance.random() < 0.2:
        return chance.choice((*BODIES, chance.randbytes(chance.randrange(300))))
    keys = chance.sample(KEYS, chance.randrange(1, 5))
    return json.dumps({key: chance.choice(VALUES) for key in keys}).encode()


def any_messages(chance: random.Random) -> Iterator[bytes]:
    """Inputs for one connection: openings and frames, right and wrong."""
    opening = bytearray(OPENING)
    if chance.random() < 0.3:
        opening[chance.randrange(len(opening))] = chance.randrange(256)
    yield bytes(opening)
    for _ in range(chance.randrange(1, 6)):
        yield encode_message(any_body(chance))
    body = any_body(chance)
    broken = (
        bytes((chance.randrange(256),)) + encode_message(body)[1:],
        b"\x02" + chance.randbytes(8) + body,
        encode_message(body)[: chance.randrange(len(body) + 2)],
        chance.randbytes(chance.randrange(1, 100)),
        OPENING,
    )
    yield chance.choice(broken)


ATTACKS: dict[str, Callable[[TakenOver], dict[str, Any]]] = {
    "parts": lambda w: w.flood(endless_parts, 400 * MIB, 60),
    "greeting": lambda w: w.flood(endless_greeting, 100 * MIB, 60),
    "frame": lambda w: w.flood(endless_frame, 100 * MIB, 60),
    "command": lambda w: w.flood(endless_command, 100 * MIB, 60),
    "answers": lambda w: w.flood(endless_answers, 1 << 40, 4),
    "logs": lambda w: w.flood(endless_logs, 1 << 40, 4),
    "inputs": lambda w: w.inputs(lambda: any_messages(w.chance), 10000),
    "scribble": TakenOver.scribble,
    "empty": lambda w: w.packets((b"", 100)),
    "fds": lambda w: w.packets((b'{"event":"worker-died","slot":0,"status":1}', 200)),
    "failed": lambda w: w.packets((b'{"event":"failed","error":"\\u0000invented\\n"}', 0)),
    "ready": lambda w: w.packets((b'{"event":"ready"}', 0)),
    "slot": lambda w: w.packets((b'{"event":"worker-died","slot":64,"status":1}', 0)),
    "json": lambda w: w.packets((b"[" * 60000, 0)),
    "packets": lambda w: w.packets(*[(b'{"id":0}', 0)] * 200000),
}


class Worker(fake_pool.FakeWorker):
    """A worker that is honest until it finds an attack in the share."""

    def __init__(self, pool: fake_pool.FakePool, slot: int) -> None:
        path = Path(pool.job["shared_dir"]) / f"attack-{slot}"
        self.attack = path.read_text() if path.exists() else None
        if self.attack is None:
            super().__init__(pool, slot)
            return
        path.unlink()
        self.pool, self.slot = pool, slot

    def run(self) -> None:
        if self.attack is None:
            super().run()
            return
        result = ATTACKS[self.attack](TakenOver(self.pool, self.slot))
        self.pool.report({"attack": self.attack, **result})

    def adopt(self, content: dict[str, Any]) -> None:
        """Adopt as a worker does, with the wrong answers and pauses that files of the share ask
        for."""
        share = Path(self.pool.job["shared_dir"])
        answers, fifo = share / f"answers-{self.slot}", share / f"hang-{self.slot}"
        buried = share / f"buried-{self.slot}"
        if answers.exists():
            for forged in json.loads(answers.read_text()):
                self.end.send({"id": content["id"], **forged})
            answers.unlink()
        if buried.exists():
            buried.unlink()
            event = {"event": "worker-died", "slot": self.slot, "status": 1, "respawned": False}
            self.pool.channel.send(event)
            time.sleep(0.5)  # until the supervisor has read the event and given up on this worker
        if fifo.exists():
            hang(fifo)
        super().adopt(content)


def hang(fifo: Path) -> None:
    """Be in state D until a process opens the FIFO to write. While the child of a vfork() waits in
    open(), its parent waits uninterruptibly."""
    action = (os.POSIX_SPAWN_OPEN, 0, str(fifo), os.O_RDONLY, 0)
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}, file_actions=[action]), 0)


if __name__ == "__main__":
    vars(fake_pool)["FakeWorker"] = Worker
    fake_pool.main()
