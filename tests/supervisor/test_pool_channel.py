# SPDX-License-Identifier: Apache-2.0
"""Thousands of packets over the pool's channel: a packet can end the pool, and do no other harm."""

import json
import os
import random
import socket
from collections.abc import Callable, Iterator

import psutil
import pytest

from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.launcher_record import LauncherRecord
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.patience import Patience
from vfsd.supervisor.pool_client import PoolClient
from vfsd.supervisor.pool_errors import PoolDiedError
from vfsd.supervisor.segments import Segments
from vfsd.supervisor.stderr_relay import StderrRelay, stderr_pipe
from vfsd.transport.errors import OperatorError
from vfsd.transport.fd_channel import FdChannel

from .hostile_pool import VALUES, any_body

PACKETS = 5000
SLOTS = 3
MIB = 1 << 20


class Line:
    """The supervisor's object for a pool, and the end of the channel that a pool would have."""

    def __init__(self, is_ready: bool) -> None:
        self.loop = EventLoop()
        ours, self.theirs = FdChannel.pair()
        nobody = Segments(-1, -1, -1, -1, -1)
        log = LogCollector("vm", "debug", lambda _level, _line: True)
        reader, self.stderr = stderr_pipe()
        stderr = StderrRelay(self.loop, log, reader)
        launcher = Launcher(0, -1, LauncherRecord())  # no request is sent to it
        listeners = [("/none", -1)] * SLOTS
        patience = Patience(self.loop, log)
        self.pool = PoolClient(self.loop, launcher, ours, nobody, listeners, stderr, patience)
        self.pool.ready = is_ready
        self.pool.pid = os.getpid() if is_ready else None

    def close(self) -> None:
        if self.pool.pidfd is not None:
            os.close(self.pool.pidfd)
        self.pool.channel.close()
        self.pool.stderr.close()
        os.close(self.stderr)
        self.theirs.close()

    def send(self, data: bytes, fds: int = 0) -> None:
        socket.send_fds(self.theirs.socket, [data], [0] * fds)


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line(True)
    yield made
    made.close()


def any_packet(chance: random.Random) -> bytes:
    """A packet that a pool sends, mostly with one value replaced, or a random message."""
    events = (
        {"event": "worker-died", "slot": 1, "signal": 9, "respawned": True},
        {"log": "text", "level": "info"},
        {"event": "failed", "error": "text"},
        {"event": "ready"},
    )
    if chance.random() < 0.3:
        return any_body(chance)
    content: dict[str, object] = dict(chance.choice(events))
    if chance.random() < 0.7:
        content[chance.choice(sorted(content))] = chance.choice(VALUES)
    return json.dumps(content).encode()


def end_of(line: Line) -> Exception | None:
    """Run one turn of the event loop; returns its exception, if a packet may cause this one."""
    try:
        line.loop.turn(0)
    except (PoolDiedError, OperatorError) as error:
        return error
    return None


@pytest.mark.parametrize("is_ready", [True, False])
def test_thousands_of_packets(is_ready: bool) -> None:
    chance = random.Random(is_ready)  # noqa: S311
    process = psutil.Process()
    line, ends = Line(is_ready), 0
    fds, memory = process.num_fds(), process.memory_info().rss
    for _ in range(PACKETS):
        line.send(any_packet(chance), chance.choice((0, 0, 0, 0, 3)))
        if (end := end_of(line)) is not None:
            assert isinstance(end, PoolDiedError) or not is_ready
            assert len(str(end)) < 5000
            assert str(end).isprintable()
            line.close()
            line, ends = Line(is_ready), ends + 1
        assert process.num_fds() - fds in (0, 1)  # "ready" adds a pidfd
    line.close()
    assert 100 < ends < PACKETS
    assert process.memory_info().rss - memory < 16 * MIB


ANSWERS: tuple[dict[str, object], ...] = (
    {},
    {"pid": True},
    {"pid": "7"},
    {"pid": -1},
    {"pid": 1 << 40},
    {"error": 7},
    {"error": "\x1b[2J"},
    {"fds": []},
    {"fds": [3, 3]},
    {"fds": [True, 2]},
    {"fds": {"0": 1}},
)


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
@pytest.mark.parametrize("order", ["spawn", "adopt", "drop"])
def test_a_wrong_answer_ends_the_pool(line: Line, order: str, answer: dict[str, object]) -> None:
    """The pool answers before the order: it can guess the order's id, because ids are counted."""
    first = next(vars(line.pool)["_ids"])
    line.pool.numbers = {0: 7, 1: 8}
    for number in range(first + 1, first + 4):
        line.theirs.send({"id": number, **answer})
    orders: dict[str, Callable[[], object]] = {
        "spawn": lambda: line.pool.spawn(1),
        "adopt": lambda: line.pool.adopt([0, 1]),
        "drop": lambda: line.pool.drop([0, 1]),
    }
    if order == "drop" and isinstance(answer.get("error", ""), str):
        orders[order]()  # of this answer only "error" is read; a refusal ends nothing
        return
    with pytest.raises(PoolDiedError) as end:
        orders[order]()
    assert str(end.value).isprintable()


def test_packets_without_end(line: Line) -> None:
    end = None
    for _ in range(20000):
        line.send(b'{"log":"text","level":"debug"}')
        if (end := end_of(line)) is not None:
            break
    assert "packets without end" in str(end)
