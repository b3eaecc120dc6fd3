# SPDX-License-Identifier: Apache-2.0
"""The control channel between a supervisor and a worker that comes and goes."""

import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfsd.transport.channel import EARLY, SupervisorEnd, WorkerEnd
from vfsd.transport.control_messages import Content, adopt


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "worker"))
        sock.listen(8)
        yield sock


def receive(end: SupervisorEnd | WorkerEnd, seconds: float = 5.0) -> Content:
    """The next message, whatever has to be sent again until it comes."""
    deadline = time.monotonic() + seconds
    while (content := end.receive()) is None:
        assert time.monotonic() < deadline, "nothing came"
        if isinstance(end, SupervisorEnd):
            end.resend()
        select.select([end.fileno()], [], [], 0.02)
    return content


def connect(listener: socket.socket) -> SupervisorEnd:
    return SupervisorEnd(listener.getsockname())


def test_a_command_is_answered(listener: socket.socket) -> None:
    worker, supervisor = WorkerEnd(listener.fileno()), connect(listener)
    supervisor.command(1, adopt(4), 5)
    assert receive(worker) == {"id": 1, "command": "adopt", "generation": 4}
    worker.send({"id": 1, "generation": 4})
    assert receive(supervisor) == {"id": 1, "generation": 4}
    assert supervisor.wake_at() is None
    worker.close()
    supervisor.close()


def test_the_listener_outlives_the_worker(listener: socket.socket) -> None:
    supervisor = connect(listener)
    for number in range(3):
        supervisor.command(number, adopt(number), 5)
        worker = WorkerEnd(listener.fileno())
        assert receive(worker)["generation"] == number
        worker.send({"id": number})
        assert receive(supervisor) == {"id": number}
        worker.close()
        assert os.fstat(listener.fileno())
    supervisor.close()


def test_a_command_is_repeated_until_it_is_answered(listener: socket.socket) -> None:
    worker, supervisor = WorkerEnd(listener.fileno()), connect(listener)
    supervisor.command(7, adopt(2), 5)
    assert receive(worker)["id"] == 7
    while (again := worker.receive()) is None:
        supervisor.resend()
        time.sleep(0.01)
    assert again["id"] == 7
    worker.send({"id": 7})
    worker.send({"id": 7})
    worker.send({"event": "hello"})
    assert receive(supervisor) == {"id": 7}
    assert receive(supervisor) == {"event": "hello"}  # the second answer is passed over
    worker.close()
    supervisor.close()


def test_a_command_that_nobody_answers_expires(listener: socket.socket) -> None:
    supervisor = connect(listener)
    supervisor.command(9, adopt(2), 0.05)
    assert supervisor.expired() == []
    time.sleep(0.06)
    assert supervisor.expired() == [9]
    assert supervisor.expired() == []
    supervisor.close()


def test_what_a_worker_says_early_is_kept(listener: socket.socket) -> None:
    worker = WorkerEnd(listener.fileno())
    for number in range(EARLY + 5):
        assert not worker.send({"log": str(number), "level": "info"})
    supervisor = connect(listener)
    supervisor.command(1, adopt(1), 5)
    assert receive(worker)["id"] == 1
    assert receive(supervisor)["log"] == "5"  # the oldest are lost
    worker.close()
    supervisor.close()


def test_nobody_blocks_when_the_other_does_not_read(listener: socket.socket) -> None:
    worker, supervisor = WorkerEnd(listener.fileno()), connect(listener)
    supervisor.command(1, adopt(1), 5)
    receive(worker)
    start = time.monotonic()
    for _ in range(20000):
        worker.send({"log": "x" * 1000, "level": "info"})
    assert worker.dropped > 0
    assert time.monotonic() - start < 10
    worker.close()
    supervisor.close()
