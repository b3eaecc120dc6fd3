# SPDX-License-Identifier: Apache-2.0
"""A worker that was taken over spoils its own socket of the broker: the other workers are
served."""

import errno
import os
import signal
from collections.abc import Callable
from threading import Event, Thread
from typing import Final, Self

import pytest

from .conftest import Folder
from .daemon import Daemon, wait_until
from .fuse import GETATTR_IN, ROOT, Guest, Op
from .injector import Injector
from .test_handle_broker import (
    BATCH,
    IDENTITY,
    O_PATH,
    REQUEST,
    SIGN,
    Thief,
    asked,
    crowd,
    guard_and_broker,
    start,
)

ASKED: Final = 40  # inodes that only the broker can open


def known_by_handle(guest: Guest, daemon: Daemon) -> dict[int, int]:
    """Inode numbers by nodeid, of the files that were made known first and so have no fd any
    more."""
    folder = Folder(ROOT, daemon.share, b"")
    nodeids = crowd(guest, folder)[:ASKED]
    return {n: (daemon.share / f"crowd-{i}").stat().st_ino for i, n in enumerate(nodeids)}


def error_of(guest: Guest, nodeid: int, queue: int) -> int:
    body = GETATTR_IN.pack(0, 0, 0)
    return guest.ask(Op.GETATTR, nodeid, body, room=104, queue=queue).error


def kill_worker(daemon: Daemon) -> None:
    worker = daemon.the("worker", "queue 1")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: worker not in daemon.titled("worker"), 5, "the worker is dead")


def test_its_socket_is_closed() -> None:
    """On the spoiled queue an inode without an fd is stale until it is looked up again, also for
    the worker that replaces this one. An inode that has an fd is served there as well."""
    daemon, frontend, guest = start()
    with daemon, frontend:
        files = known_by_handle(guest, daemon)
        before = guard_and_broker(daemon)
        worker = daemon.the("worker", "queue 1")
        with Injector(worker) as taken:
            assert taken.call("close", Thief(taken).sock) == 0
        for _ in range(2):
            nodeid, number = files.popitem()
            assert error_of(guest, nodeid, 1) == errno.ESTALE
            assert asked(guest, nodeid, 2) == number
            assert error_of(guest, ROOT, 1) == 0
            kill_worker(daemon)
        for nodeid, number in files.items():
            assert asked(guest, nodeid, 2) == number
        assert guard_and_broker(daemon) == before


def fds_to_sign(thief: Thief, folder: int) -> None:
    """As many fds to sign as one message takes."""
    thief.send(REQUEST.pack(1, SIGN, 0, 0) + bytes(IDENTITY.size), [folder] * BATCH)


def nonsense(thief: Thief, _folder: int) -> None:
    thief.send(b"\xff" * 4096)


class Flood(Thread):
    """A worker that was taken over sends without end, and reads no answer."""

    def __init__(self, pid: int, send: Callable[[Thief, int], None]) -> None:
        super().__init__()
        self.sent = 0
        self._pid = pid
        self._send = send
        self._end = Event()

    def run(self) -> None:
        with Injector(self._pid) as worker:
            thief = Thief(worker)
            folder = thief.open_in_share("", O_PATH | os.O_DIRECTORY)
            while not self._end.is_set():
                self._send(thief, folder)
                self.sent += 1
            worker.call("close", folder)

    def __enter__(self) -> Self:
        self.start()
        wait_until(lambda: self.sent > 10, 10, "the worker sends")
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()


@pytest.mark.parametrize("send", [fds_to_sign, nonsense])
def test_it_sends_without_end(send: Callable[[Thief, int], None]) -> None:
    daemon, frontend, guest = start()
    with daemon, frontend:
        files = known_by_handle(guest, daemon)
        before = guard_and_broker(daemon)
        worker = daemon.the("worker", "queue 1")
        with Flood(worker, send):
            for nodeid, number in list(files.items())[: ASKED // 2]:
                assert asked(guest, nodeid, 2) == number
        assert guard_and_broker(daemon) == before
        for nodeid, number in files.items():
            assert asked(guest, nodeid, 1) == number
