# SPDX-License-Identifier: Apache-2.0
"""Locks and requests at the end of a session, and of a worker.

A session that has ended, by DESTROY, a reset or the end of the connection, has no lock left when
the next INIT is answered. A request that waits for a lock outlives its worker, and so does its
place among those that wait. Requests that are in flight when a connection ends are answered once on
the next connection.
"""

import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import require
from tests.waiting import HANG

from . import driver
from .conftest import OPTIONS
from .daemon import Daemon, wait_until
from .driver import Frontend, NoReplyError
from .fuse import LK_IN, ROOT, Guest, Op, Pending, read_in
from .hung import HungMount, waits_for_a_server
from .test_ops_files import F_UNLCK, F_WRLCK, FLOCK, expect_success, lock
from .test_reset import is_locked

ENDS = ("DESTROY", "RESET_DEVICE", "reconnect", "INIT")
KINDS = ("record", "flock")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(*OPTIONS, "--request-queues=2") as running:
        yield running


def connect(daemon: Daemon) -> Guest:
    guest = Guest(Frontend(daemon.socket).setup(2))
    guest.init()
    return guest


def begin_again(guest: Guest, how: str, daemon: Daemon) -> Guest:
    """End the session, and begin the next one."""
    if how == "reconnect":
        guest.frontend.close()
        return connect(daemon)
    if how == "DESTROY":
        guest.call(Op.DESTROY)
    if how == "RESET_DEVICE":
        guest.frontend.tell(driver.RESET_DEVICE)
        for ring in guest.frontend.rings.values():
            ring.clear()
            guest.frontend.start_ring(ring)
    guest.init()
    return guest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ENDS)
def test_no_lock_is_left_when_the_next_init_is_answered(
    daemon: Daemon, how: str, kind: str
) -> None:
    """A thousand files, so that closing them takes time."""
    count = 1000
    for number in range(count):
        (daemon.share / f"{number}").touch()
    guest = connect(daemon)
    for number in range(count):
        nodeid = guest.lookup(ROOT, b"%d" % number).nodeid
        fh = guest.open(nodeid, os.O_RDWR)
        expect_success(lock(guest, Op.SETLK, nodeid, fh, 1, F_WRLCK, flock=kind == "flock"))
    fds = [os.open(daemon.share / f"{number}", os.O_RDWR) for number in range(count)]
    assert is_locked(fds[0])
    guest = begin_again(guest, how, daemon)
    left = sum(map(is_locked, fds))
    for fd in fds:
        os.close(fd)
    guest.frontend.close()
    assert left == 0


# Requests that wait for a lock.


def wait_for_lock(guest: Guest, nodeid: int, fh: int, owner: int, kind: str, queue: int) -> Pending:
    flags = FLOCK if kind == "flock" else 0
    body = LK_IN.pack(fh, owner, 0, (1 << 63) - 1, F_WRLCK, os.getpid(), flags, 0)
    return guest.submit(Op.SETLKW, nodeid, body, queue=queue)


def kill_worker(daemon: Daemon) -> None:
    """Kill the worker of queue 1, and wait for the next worker."""
    victim = daemon.the("worker", "queue 1")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: daemon.the("worker", "queue 1") != victim, 10, "the next worker")


@pytest.mark.parametrize("kind", KINDS)
def test_requests_that_wait_for_a_lock_keep_their_order_when_their_worker_dies(
    daemon: Daemon, kind: str
) -> None:
    (daemon.share / "x").touch()
    guest = connect(daemon)
    nodeid = guest.lookup(ROOT, b"x").nodeid
    files = [guest.open(nodeid, os.O_RDWR) for _ in range(5)]
    is_flock = kind == "flock"
    expect_success(lock(guest, Op.SETLK, nodeid, files[0], 4, F_WRLCK, flock=is_flock))
    waiting = [
        wait_for_lock(guest, nodeid, fh, owner, kind, queue=1)
        for owner, fh in zip(range(8, 24, 4), files[1:], strict=True)
    ]
    with pytest.raises(NoReplyError):
        guest.finish(waiting[0], 0.2)
    for _ in range(3):
        kill_worker(daemon)
    guest.lookup(ROOT, b".", queue=1)
    holder = files[0], 4
    for owner, fh, pending in zip(range(8, 24, 4), files[1:], waiting, strict=True):
        expect_success(lock(guest, Op.SETLK, nodeid, holder[0], holder[1], F_UNLCK, flock=is_flock))
        assert guest.finish(pending).error == 0, f"waiter {owner}"
        holder = fh, owner
    guest.frontend.close()


# Requests in flight.


class Reconnecting:
    """A guest whose VMM connects again, with the same memory, rings and requests in flight."""

    def __init__(self, daemon: Daemon, record: bool) -> None:
        self.daemon = daemon
        self.frontend = Frontend(daemon.socket)
        self.frontend.negotiate()
        self.message, self.record = b"", -1
        if record:
            asked = struct.pack("<QQHH4x", 0, 0, 2, 128)
            reply = self.frontend.ask(driver.GET_INFLIGHT_FD, asked)
            self.message, (self.record,) = reply.data, reply.fds
            self.frontend.tell(driver.SET_INFLIGHT_FD, self.message, [self.record])
        self.frontend.set_memory()
        for index in range(2):
            self.frontend.start_ring(self.frontend.add_ring(index))
        self.guest = Guest(self.frontend)
        self.guest.init()

    def connect_again(self, daemon: Daemon) -> None:
        """As Cloud Hypervisor does: the base is the avail index."""
        old = self.frontend
        again = Frontend(daemon.socket, old.memory)
        again.negotiate()
        if self.record >= 0:
            again.tell(driver.SET_INFLIGHT_FD, self.message, [self.record])
        again.set_memory()
        again.rings, old.rings = old.rings, {}
        for ring in again.rings.values():
            again.start_ring(ring, ring.avail_idx)
        old.socket.close()
        self.frontend = self.guest.frontend = again

    def close(self) -> None:
        self.frontend.close()
        if self.record >= 0:
            os.close(self.record)


COUNT = 40


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[HungMount]:
    require("root")
    require("/dev/fuse")
    (tmp_path / "share").mkdir()
    with HungMount(tmp_path / "share", tmp_path / "source") as mounted:
        (tmp_path / "source" / "file").write_bytes(b"x" * 4096 * COUNT)
        yield mounted


@pytest.mark.parametrize("record", [True, False], ids=["record", "no record"])
@pytest.mark.parametrize("replaced", [True, False], ids=["new daemon", "same daemon"])
def test_requests_in_flight_are_answered_once_on_the_next_connection(
    hung: HungMount, tmp_path: Path, record: bool, replaced: bool
) -> None:
    """Ring.reap checks that no head is used twice."""
    share = tmp_path / "share"
    options = () if replaced else ("--keep-listening",)
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(*options, share=share))
        vm = Reconnecting(daemon, record)
        stack.callback(vm.close)
        guest = vm.guest
        slow = guest.lookup(ROOT, b"mnt").nodeid
        nodeid = guest.lookup(slow, b"file").nodeid
        fh = guest.open(nodeid, os.O_RDONLY)
        worker = daemon.the("worker", "queue 1")
        with hung.hanging():
            waiting = [
                guest.submit(Op.READ, nodeid, read_in(fh=fh, offset=4096 * i, size=4096), room=4096)
                for i in range(COUNT)
            ]
            wait_until(lambda: waits_for_a_server(worker), 10, "the reads wait")
            vm.frontend.socket.shutdown(socket.SHUT_RDWR)
            if replaced:
                assert daemon.process.wait(HANG) == 0
                daemon = stack.enter_context(Daemon(share=share))
            vm.connect_again(daemon)
            for pending in waiting:
                vm.guest.finish(pending)
        vm.guest.init()
        vm.guest.lookup(ROOT, b"mnt")
