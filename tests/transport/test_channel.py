# SPDX-License-Identifier: Apache-2.0
"""The control channel between a supervisor and a worker. The worker's end uses libzmq, and the
supervisor's end is our own code.

Workers die and are created again while the supervisor's end stays.
"""

import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import HANG
from vfsd.supervisor import worker_link
from vfsd.supervisor.worker_link import WorkerLink
from vfsd.transport import zmtp
from vfsd.transport.channel import EARLY, WorkerEnd
from vfsd.transport.control_messages import MAX_MESSAGE, Content, adopt


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "worker"))
        sock.listen(8)
        yield sock


def receive(end: WorkerLink | WorkerEnd, seconds: float = 10.0) -> Content:
    """The next message for `end`; a WorkerLink sends its command again while it waits."""
    deadline = time.monotonic() + seconds
    while (content := end.receive()) is None:
        assert time.monotonic() < deadline, "nothing came"
        if isinstance(end, WorkerLink):
            end.tick()
        select.select([end.fileno()], [], [], 0.02)
    return content


def exchange(link: WorkerLink, worker: WorkerEnd, request_id: int) -> None:
    """Send a command to a worker and take its answer. Both ends are run in turn: neither end makes
    progress unless the other one does."""
    link.command(request_id, adopt(request_id), 30)
    deadline = time.monotonic() + 10
    while (command := worker.receive()) is None:
        assert time.monotonic() < deadline, "no command came"
        link.receive()
        link.tick()
        select.select([worker.fileno()], [], [], 0.01)
    assert command == {"id": request_id, "command": "adopt", "generation": request_id}
    worker.send({"id": request_id, "generation": request_id})
    assert receive(link) == {"id": request_id, "generation": request_id}
    link.end(request_id)


def connect(listener: socket.socket) -> WorkerLink:
    return WorkerLink(listener.getsockname())


def test_a_command_is_answered(listener: socket.socket) -> None:
    worker, link = WorkerEnd(listener.fileno()), connect(listener)
    exchange(link, worker, 4)
    assert link.wake_at() == float("inf")
    worker.close()
    link.close()


def test_the_listener_outlives_the_worker(listener: socket.socket) -> None:
    link = connect(listener)
    for number in range(20):
        worker = WorkerEnd(listener.fileno())
        exchange(link, worker, number)
        worker.close()
        assert os.fstat(listener.fileno())
    link.close()


def test_a_worker_that_comes_later_gets_what_waits(listener: socket.socket) -> None:
    link = connect(listener)
    for number in range(3):
        link.command(number, adopt(number), 30)
    worker = WorkerEnd(listener.fileno())
    deadline = time.monotonic() + 10
    seen: set[int] = set()
    while seen != {0, 1, 2}:
        assert time.monotonic() < deadline
        link.receive()
        if (content := worker.receive()) is not None:
            seen.add(content["id"])
    worker.close()
    link.close()


def test_a_command_is_repeated_until_it_is_answered(listener: socket.socket) -> None:
    worker, link = WorkerEnd(listener.fileno()), connect(listener)
    exchange(link, worker, 1)
    link.command(7, adopt(2), 5)
    assert receive(worker)["id"] == 7
    while (again := worker.receive()) is None:
        link.tick()
        time.sleep(0.01)
    assert again["id"] == 7
    worker.send({"id": 7})
    worker.send({"id": 7})
    worker.send({"event": "hello"})
    assert receive(link) == {"id": 7}
    link.end(7)
    assert not link.is_pending(7)
    assert receive(link) == {"id": 7}
    assert receive(link) == {"event": "hello"}
    worker.close()
    link.close()


def test_a_command_that_nobody_answers_expires(listener: socket.socket) -> None:
    link = connect(listener)
    link.command(9, adopt(2), 0.05)
    assert link.expired() == []
    time.sleep(0.06)
    assert link.expired() == [9]
    assert link.expired() == []
    link.close()


def test_what_a_worker_says_early_is_kept(listener: socket.socket) -> None:
    worker = WorkerEnd(listener.fileno())
    for number in range(EARLY + 5):
        assert not worker.send({"log": str(number), "level": "info"})
    link = connect(listener)
    exchange_started = time.monotonic()
    while (content := link.receive()) is None:
        assert time.monotonic() < exchange_started + HANG
        worker.receive()
    assert content["log"] == "5"  # the oldest lines are lost
    worker.close()
    link.close()


def test_nobody_blocks_when_the_other_does_not_read(listener: socket.socket) -> None:
    worker, link = WorkerEnd(listener.fileno()), connect(listener)
    exchange(link, worker, 1)
    start = time.monotonic()
    for _ in range(20000):
        worker.send({"log": "x" * 1000, "level": "info"})
    assert worker.dropped > 0
    assert time.monotonic() - start < HANG
    worker.close()
    link.close()


@pytest.mark.parametrize("size", [0, 200, 240, 250, 255, 256, 1000, MAX_MESSAGE - 100])
def test_messages_of_every_size_pass(listener: socket.socket, size: int) -> None:
    worker, link = WorkerEnd(listener.fileno()), connect(listener)
    exchange(link, worker, 1)
    worker.send({"log": "x" * size})
    assert receive(link) == {"log": "x" * size}
    link.command(2, {"text": "y" * (size // 2)}, 5)
    assert receive(worker)["text"] == "y" * (size // 2)
    worker.close()
    link.close()


def test_a_worker_that_stops_reading_costs_no_memory(listener: socket.socket) -> None:
    link = connect(listener)
    connection, _ = listener.accept()
    with connection:
        connection.sendall(zmtp.OPENING)
        assert link.receive() is None
        for number in range(5000):
            link.command(number, adopt(number), 0)
            link.expired()
            link.tick()
        waiting = vars(link)["_outgoing"]
        assert 0 < len(waiting) <= worker_link.OUTGOING_BYTES
    link.close()


def test_nobody_listens_yet(tmp_path: Path) -> None:
    path = tmp_path / "worker"
    link = WorkerLink(str(path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        worker = WorkerEnd(listener.fileno())
        exchange(link, worker, 1)
        worker.close()
    link.close()


def test_a_link_that_broke_the_protocol_is_opened_again_later(listener: socket.socket) -> None:
    link = connect(listener)
    pauses = []
    for _ in range(3):
        link.break_off()
        pauses.append(link.wake_at() - time.monotonic())
        assert link.receive() is None
    assert pauses == sorted(pauses)
    assert pauses[0] > 0.05
    worker = WorkerEnd(listener.fileno())
    exchange(link, worker, 1)
    worker.close()
    link.close()


def test_a_handshake_that_does_not_end_is_given_up(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_link, "HANDSHAKE_SECONDS", 0.05)
    link = connect(listener)
    stuck, _ = listener.accept()
    with stuck:
        time.sleep(0.06)
        link.tick()
        stuck.settimeout(HANG)
        while stuck.recv(1000):
            pass
    monkeypatch.undo()
    worker = WorkerEnd(listener.fileno())
    exchange(link, worker, 1)
    worker.close()
    link.close()


def test_a_rest_leaves_nothing_unread(listener: socket.socket) -> None:
    link = connect(listener)
    connection, _ = listener.accept()
    with connection:
        messages = b"".join(zmtp.encode_message(b'{"n":%d}' % n) for n in range(3))
        connection.sendall(zmtp.OPENING + messages)
        assert link.receive() == {"n": 0}
        link.rest(0.05)
        assert not link.tick()
        assert not select.select([link.fileno()], [], [], 0)[0]
        time.sleep(0.06)
        assert link.tick()
        assert [link.receive() for _ in range(3)] == [{"n": 1}, {"n": 2}, None]
    link.close()
