# SPDX-License-Identifier: Apache-2.0
"""The spare pool: a VMM that connects after another VMM does not wait for the start of a pool."""

import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode

from .daemon import Daemon, parent, wait_until
from .driver import GET_FEATURES, Frontend
from .fuse import ROOT, Guest

ROUNDS = 5
FORBIDDEN = 10  # rounds in which a pool may not be started


@pytest.fixture
def daemon(sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    with Daemon("--keep-listening", "--request-queues=2", mode=sandbox_mode) as running:
        yield running


def await_spare(daemon: Daemon) -> int:
    """The pid of the spare pool, once the process that made it has ended: the keeper is its parent
    then."""
    found: list[int] = []

    def is_ready() -> bool:
        found[:] = [pid for pid, title in daemon.spare().items() if title.endswith(" pool")]
        return len(found) == 1 and parent(found[0]) == daemon.process.pid

    wait_until(is_ready, 20, "a spare pool")
    return found[0]


def await_end_of_spare(daemon: Daemon, pid: int) -> None:
    wait_until(lambda: pid not in daemon.spare(), 10, "that spare pool is gone")


def work(frontend: Frontend) -> None:
    guest = Guest(frontend.setup(1))
    guest.init()
    guest.getattr(ROOT)


@in_each_mode
def test_the_next_vmm_has_the_pool_that_was_made_before(daemon: Daemon) -> None:
    """Each VMM has a pool of its own."""
    used = set()
    for _ in range(3):
        with Frontend(daemon.socket) as frontend:
            work(frontend)
            used.add(daemon.the("pool"))
            spare = await_spare(daemon)
        with Frontend(daemon.socket) as frontend:
            work(frontend)
            assert daemon.the("pool") == spare
        assert spare not in used


def test_no_spare_pool_without_keep_listening() -> None:
    with Daemon() as daemon, Frontend(daemon.socket) as frontend:
        work(frontend)
        time.sleep(3)
        assert not daemon.spare()


def test_a_vmm_that_starts_no_ring_uses_no_pool_up(daemon: Daemon) -> None:
    """The pool has got nothing of that VMM."""
    daemon.await_pool()
    pool = daemon.the("pool")
    for _ in range(FORBIDDEN):
        with Frontend(daemon.socket) as frontend:
            frontend.negotiate()
            frontend.set_memory()
    with Frontend(daemon.socket) as frontend:
        work(frontend)
        assert daemon.the("pool") == pool


def test_a_spare_pool_that_dies_is_replaced_and_the_guest_goes_on(daemon: Daemon) -> None:
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        pool = daemon.the("pool")
        for _ in range(3):
            dead = await_spare(daemon)
            os.kill(dead, signal.SIGKILL)
            guest.getattr(ROOT)
            await_end_of_spare(daemon, dead)
        await_spare(daemon)
        assert daemon.the("pool") == pool
    said = daemon.log.read_text()
    for seconds in (1, 2, 4):
        assert f"trying again in {seconds} s" in said


def test_a_supervisor_that_dies_takes_its_spare_pool_along(daemon: Daemon) -> None:
    with Frontend(daemon.socket) as frontend:
        work(frontend)
        pool, old = daemon.the("pool"), await_spare(daemon)
        os.kill(daemon.the("supervisor"), signal.SIGKILL)
        await_end_of_spare(daemon, old)
        assert await_spare(daemon) != old
        assert daemon.the("pool") == pool
    with Frontend(daemon.socket) as frontend:
        work(frontend)


def starting(daemon: Daemon) -> list[int]:
    """Programs that become a pool and have no title yet."""
    return [pid for pid, title in daemon.pids().items() if "vfsd.worker" in title]


def test_a_vmm_is_answered_before_its_pool_has_started(daemon: Daemon) -> None:
    """The handshake needs no pool."""
    with Frontend(daemon.socket) as frontend:
        work(frontend)  # and there is no time for a spare pool
    wait_until(lambda: starting(daemon), 10, "a pool that starts")
    (slow,) = starting(daemon)
    os.kill(slow, signal.SIGSTOP)
    try:
        with Frontend(daemon.socket) as frontend:
            frontend.negotiate()
            frontend.set_memory()
            os.kill(slow, signal.SIGCONT)
            for index in range(2):
                frontend.start_ring(frontend.add_ring(index))
            guest = Guest(frontend)
            guest.init()
            guest.getattr(ROOT)
    finally:
        with suppress(ProcessLookupError):
            os.kill(slow, signal.SIGCONT)


def waits(daemon: Daemon) -> tuple[float, float]:
    """Milliseconds from connect(2) to the answer to GET_FEATURES, and to the first FUSE reply."""
    start = time.monotonic()
    with Frontend(daemon.socket) as frontend:
        frontend.ask(GET_FEATURES)
        answered = time.monotonic()
        work(frontend)
        return 1000 * (answered - start), 1000 * (time.monotonic() - start)


def test_a_vmm_that_connects_again_waits_for_no_start(daemon: Daemon) -> None:
    """With -s this prints the figures of docs/performance.md."""
    rounds = []
    for _ in range(ROUNDS):
        with Frontend(daemon.socket) as frontend:
            work(frontend)
            await_spare(daemon)
        rounds.append(waits(daemon))
    start = time.monotonic()
    with Daemon() as fresh:
        fresh.await_pool()
        started = 1000 * (time.monotonic() - start)
    for what, times in zip(
        ("GET_FEATURES", "the first FUSE reply"), zip(*rounds, strict=True), strict=True
    ):
        print(f"{what}: median {statistics.median(times):.1f} ms, at least {min(times):.1f} ms")
    assert min(answered for answered, _ in rounds) < started / 2
