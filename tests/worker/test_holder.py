# SPDX-License-Identifier: Apache-2.0
"""The holder creates another pool when a pool dies at whatever point, and workers do not notice."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from tests.waiting import wait_until
from tests.worker.pool_process import Link, PoolProcess
from vfsd.worker.pool_memory import DEATHS, PoolMemory

NewPool = Callable[..., PoolProcess]
Connect = Callable[[str], Link]
MODES = ("namespace", "chroot", "none")
FREE = 5  # short lives of pools before the holder pauses
LONG_LIFE = 0.12


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kinds(pool: PoolProcess) -> Counter[str]:
    """How many fds of each kind the sandbox has open."""
    return Counter(
        "file" if what.startswith("/") else what.split(":")[0] for what in pool.fds().values()
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_that_dies_is_replaced_and_its_workers_stay(
    new_pool: NewPool, link: Connect, mode: str
) -> None:
    pool = new_pool(sandbox=mode).start()
    pids = [pool.ask("spawn", slot=slot)["pid"] for slot in (0, 1)]
    worker = link(pool.paths[0])
    worker.event("hello")
    a = os.memfd_create("guest-memory")
    (adopted,) = pool.ask("adopt", (a,))["fds"]
    os.close(a)
    before = pool.fds()
    for _ in range(3):
        dead = pool.pool_pid()
        kill(dead)
        assert pool.event("pool-replaced") == {"event": "pool-replaced", "signal": 9}
        assert [pool.ask("spawn", slot=slot)["pid"] for slot in (0, 1)] == pids
        assert pool.pool_pid() != dead
    assert worker.command({"command": "adopt", "generation": 0})["generation"] == 0
    assert pool.fds() == before
    assert pool.ask("drop", fds=[adopted]).keys() == {"id"}
    assert adopted not in pool.fds()


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_that_dies_with_its_pool_is_replaced_at_once(
    new_pool: NewPool, link: Connect, mode: str
) -> None:
    pool = new_pool(sandbox=mode).start()
    pool.ask("spawn", slot=0)
    worker = link(pool.paths[0])
    worker.event("hello")
    worker.command({"command": "adopt", "generation": 0})
    before, seconds = kinds(pool), []
    for turn in range(6):
        first, second = pool.pool_pid(), pool.worker_pid(0)
        begin = time.monotonic()
        for pid in (first, second) if turn % 2 else (second, first):
            kill(pid)
        died = pool.event("worker-died")
        assert died == {"event": "worker-died", "slot": 0, "signal": 9, "respawned": True}
        worker.event("hello")
        seconds.append(time.monotonic() - begin)
        worker.command({"command": "adopt", "generation": 0})
        time.sleep(LONG_LIFE)
    assert min(seconds) < 1.0  # 0.05 on an idle machine
    wait_until(lambda: kinds(pool) == before, 30, "no fd stays behind")


def test_a_stopped_pool_is_replaced_when_it_is_killed(new_pool: NewPool) -> None:
    pool = new_pool().start()
    pool.ask("spawn", slot=0)
    stopped, worker = pool.pool_pid(), pool.worker_pid(0)
    os.kill(stopped, signal.SIGSTOP)
    kill(worker)
    order = pool.order("spawn", slot=1)
    kill(stopped)
    assert pool.await_answer(order)["pid"]
    assert pool.event("worker-died")["slot"] == 0
    wait_until(lambda: pool.rows[0].pid != 0, 30, "the worker is replaced")


class Storm:
    """Sends orders, and kills the pool at a random time after each of them."""

    def __init__(self, pool: PoolProcess, seed: int) -> None:
        self.pool = pool
        self.chance = random.Random(seed)  # noqa: S311
        self.adopted: list[int] = []
        self.short_lives = 0

    def step(self) -> None:
        op = self.chance.choice((self.adopt, self.adopt, self.drop, self.spawn, self.kill_worker))
        op()
        if self.short_lives == FREE:
            time.sleep(LONG_LIFE)
            self.short_lives = 0

    def ask(self, op: str, passed: Sequence[int] = (), **content: object) -> dict[str, object]:
        victim = self.pool.pool_pid()
        order = self.pool.order(op, tuple(passed), **content)
        until = time.perf_counter() + self.chance.random() * 0.004
        while time.perf_counter() < until:
            pass
        kill(victim)
        self.short_lives += 1
        answer = self.pool.await_answer(order)
        assert "error" not in answer
        return answer

    def adopt(self) -> None:
        fds = [os.eventfd(0), os.memfd_create("guest-memory"), os.eventfd(0)]
        numbers = self.ask("adopt", fds)["fds"]
        assert isinstance(numbers, list)
        self.adopted += numbers
        for fd in fds:
            os.close(fd)

    def drop(self) -> None:
        count = min(len(self.adopted), 4)
        dropped, self.adopted = self.adopted[:count], self.adopted[count:]
        self.ask("drop", fds=dropped)

    def spawn(self) -> None:
        self.ask("spawn", slot=self.chance.randrange(2))

    def kill_worker(self) -> None:
        """When the answer comes, the worker is dead, unless the pool died before the worker."""
        self.ask("kill", slot=self.chance.randrange(2))


@pytest.mark.parametrize("seed", range(4))
def test_a_pool_may_die_at_any_point_of_an_order(new_pool: NewPool, seed: int) -> None:
    """No fd is lost and none is left over, and each slot has one worker."""
    pool = new_pool().start()
    storm = Storm(pool, seed)
    for slot in (0, 1):
        pool.ask("spawn", slot=slot)
    before = kinds(pool)
    for _ in range(60):
        storm.step()
    fds = pool.fds()
    assert set(storm.adopted) <= fds.keys()
    for fd in storm.adopted:
        pool.ask("drop", fds=[fd])
    wait_until(lambda: kinds(pool) == before, 30, f"fds as before: {before}")
    wait_until(lambda: len(pool.children()) == 3, 30, "a pool and two workers")


def test_deaths_are_found_until_they_are_acted_on() -> None:
    memory = PoolMemory()
    try:
        memory.note_death(7, 9)
        memory.note_death(8, 0)
        assert memory.deaths_since(0) == memory.deaths_since(0) == [(0, 7, 9), (1, 8, 0)]
        assert memory.deaths_since(1) == [(1, 8, 0)]
        for pid in range(DEATHS):
            memory.note_death(pid, 1)
        assert len(memory.deaths_since(0)) == DEATHS
        assert memory.deaths_since(DEATHS + 1) == [(DEATHS + 1, DEATHS - 1, 1)]
    finally:
        for fd in memory.fds():
            os.close(fd)
        memory.unmap()
