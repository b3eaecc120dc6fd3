# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the pool: the workers serve all the time, and the guest sees nothing.

tests/worker/test_holder.py kills the pool at random points of its orders.
"""

import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode
from tests.waiting import HANG

from . import driver
from .conftest import OPTIONS, QUEUES, Folder, Line
from .daemon import Daemon, wait_until
from .driver import Frontend, GuestMemory, Region
from .fuse import ROOT, Guest, Op
from .test_recovery import Killer, kill, run_users, shared_files, user, worker_of

LONG_LIFE = 0.2  # seconds, after which a pool is replaced without a pause


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon of its own for each test: the number of times that its processes were killed
    matters."""
    with Daemon(*OPTIONS) as running:
        yield running


@pytest.fixture
def line(daemon: Daemon) -> Iterator[Line]:
    kept = Line(daemon)
    yield kept
    kept.close()


def open_fds(daemon: Daemon) -> int:
    holder = daemon.the(" holder")
    return sum(1 for _ in Path(f"/proc/{holder}/fd").iterdir())


def pools(daemon: Daemon) -> list[int]:
    return daemon.titled(" pool")


def test_a_guest_does_not_notice_that_pools_die(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """The workers are the same processes afterwards, and no fd is left over."""
    guest.getattr(ROOT)
    workers, before = daemon.titled("worker "), open_fds(daemon)
    counts = [0] * 8
    users = [user(folder, number, counts) for number in range(8)]
    with Killer(lambda: pools(daemon), LONG_LIFE) as killer:
        run_users(guest, users, 22, lambda: killer.kills >= 30 and min(counts) >= 3)
    assert killer.kills >= 30
    assert min(counts) >= 3, f"rounds done: {counts}"
    assert daemon.titled("worker ") == workers
    guest.call(Op.DESTROY)
    wait_until(lambda: not shared_files(daemon), 30, "no file stays open")
    wait_until(lambda: open_fds(daemon) <= before, 30, "no fd is left over")


def test_pools_and_workers_die_during_mixed_work(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    counts = [0] * 8
    users = [user(folder, number, counts) for number in range(8)]
    with (
        Killer(lambda: daemon.titled("worker ")) as workers,
        Killer(lambda: pools(daemon), 1.7 * LONG_LIFE) as killed_pools,
    ):

        def all_kills() -> int:
            return workers.kills + killed_pools.kills

        run_users(guest, users, 10, lambda: all_kills() >= 20 and min(counts) >= 2)
    assert all_kills() >= 20
    assert min(counts) >= 2, f"rounds done: {counts}"
    guest.call(Op.DESTROY)
    wait_until(lambda: not shared_files(daemon), 30, "no file of the dead stays open")


@in_each_mode
def test_a_worker_is_replaced_though_its_pool_died_with_it(sandbox_mode: SandboxMode) -> None:
    with Daemon(mode=sandbox_mode) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(QUEUES))
        guest.init()
        seconds = []
        for turn in range(4):
            both = [daemon.the(" pool"), worker_of(daemon, 1)]
            begin = time.monotonic()
            for pid in both if turn % 2 else reversed(both):
                kill(pid)
            guest.lookup(ROOT, b".", queue=1)
            seconds.append(time.monotonic() - begin)
            time.sleep(LONG_LIFE)
        assert min(seconds) < 2.0  # 0.06 on an idle machine
        wait_until(lambda: "another pool took over" in daemon.log.read_text(), 30, "a log line")


def test_a_pool_dies_between_messages_and_replies(daemon: Daemon, guest: Guest) -> None:
    """Every message is obeyed and acknowledged once, and no fd is left over."""
    frontend = guest.frontend
    spare = GuestMemory(1 << 20, regions=1)
    message = frontend.region_message(Region(1 << 40, 1 << 20, 1 << 50, 0))
    call = struct.pack("<Q", 1), [frontend.rings[1].call_fd]
    rounds, before = 0, open_fds(daemon)
    with Killer(lambda: pools(daemon), LONG_LIFE) as killer:
        begin = time.monotonic()
        while time.monotonic() < begin + 9 or killer.kills < 10 or rounds <= 10:
            assert time.monotonic() < begin + HANG, f"{killer.kills} deaths, {rounds} rounds"
            frontend.tell(driver.ADD_MEM_REG, message, [spare.fd])
            frontend.restart_ring(1 + rounds % QUEUES)
            frontend.tell(driver.REM_MEM_REG, message)
            frontend.tell(driver.SET_VRING_CALL, *call)
            guest.lookup(ROOT, b".", queue=1 + rounds % QUEUES)
            rounds += 1
    spare.close()
    wait_until(lambda: open_fds(daemon) <= before, 30, "no fd is left over")


def test_pool_and_supervisor_die_together(daemon: Daemon, guest: Guest) -> None:
    frontend = guest.frontend
    for turn in range(3):
        for pid in (daemon.the("supervisor"), daemon.the(" pool")):
            kill(pid)
        frontend.restart_ring(1 + turn)
        guest.lookup(ROOT, b".", queue=1 + turn)


def test_a_message_waits_for_a_stopped_pool_and_the_next_pool_obeys_it(
    daemon: Daemon, guest: Guest
) -> None:
    pool = daemon.the(" pool")
    os.kill(pool, signal.SIGSTOP)
    with Killer(lambda: [pool], 0.5):
        guest.frontend.restart_ring(1)
    guest.lookup(ROOT, b".", queue=1)


@in_each_mode
def test_pools_that_die_at_once_are_created_for_ever(sandbox_mode: SandboxMode) -> None:
    with Daemon(mode=sandbox_mode) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        with Killer(lambda: pools(daemon), 0.02) as killer:
            wait_until(lambda: killer.kills >= 12, 30, "12 pools have died")
            guest.getattr(ROOT)
        kill(worker_of(daemon, 1))
        guest.lookup(ROOT, b".", queue=1)
