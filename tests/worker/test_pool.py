# SPDX-License-Identifier: Apache-2.0
"""The pool over a real fd channel: it adopts fds, creates workers and replaces dead workers."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

from tests.worker.pool_process import Link, PoolProcess

NewPool = Callable[..., PoolProcess]
Connect = Callable[[str], Link]
ALWAYS = {"vfsd: test holder", "vfsd: test pool"}


def test_adopted_fds_are_installed_and_dropped(new_pool: NewPool) -> None:
    pool = new_pool().start()
    a, b = os.eventfd(0), os.memfd_create("guest-memory")
    numbers = pool.ask("adopt", (a, b))["fds"]
    os.close(a)
    os.close(b)
    fds = pool.fds()
    assert fds[numbers[0]] == "anon_inode:[eventfd]"
    assert fds[numbers[1]].startswith("/memfd:guest-memory")
    assert pool.ask("drop", fds=[numbers[0]]).keys() == {"id"}
    assert numbers[0] not in pool.fds()
    assert numbers[1] in pool.fds()


def test_fds_of_other_orders_are_closed(new_pool: NewPool) -> None:
    pool = new_pool().start()
    before = pool.fds()
    a = os.memfd_create("stray")
    assert "error" in pool.ask("nonsense", (a,))
    assert "error" in pool.ask("spawn", (a,), slot=99)
    os.close(a)
    assert pool.fds() == before


def test_only_adopted_fds_can_be_dropped(new_pool: NewPool) -> None:
    pool = new_pool().start()
    before = pool.fds()
    assert "never adopted" in pool.ask("drop", fds=[min(fd for fd in before if fd > 2)])["error"]
    assert "not a list" in pool.ask("drop", fds="all")["error"]
    assert pool.fds() == before


def test_a_worker_is_spawned_once_and_says_hello(new_pool: NewPool, link: Connect) -> None:
    pool = new_pool().start()
    pid = pool.ask("spawn", slot=1)["pid"]
    assert pool.ask("spawn", slot=1)["pid"] == pid
    assert link(pool.paths[1]).event("hello")["pid"] == pid
    assert set(pool.processes()) == {*ALWAYS, "vfsd: test worker 1"}
    assert pool.rows[1].pid == pid
    assert pool.rows[1].starts == 1


def test_a_worker_answers_adopt_with_its_generation(new_pool: NewPool, link: Connect) -> None:
    pool = new_pool().start()
    pool.ask("spawn", slot=0)
    worker = link(pool.paths[0])
    pool.device.generation = 6
    answer = worker.command({"command": "adopt", "generation": 6})
    assert answer["generation"] == 6
    assert answer["vrings"] == {}


def test_nonsense_on_the_control_channel_is_logged_and_survived(
    new_pool: NewPool, link: Connect
) -> None:
    pool = new_pool().start()
    pool.ask("spawn", slot=0)
    worker = link(pool.paths[0])
    worker.event("hello")
    worker.send({"command": "adopt"})
    worker.send({"command": "log-level", "level": "loud"})
    worker.send({"command": "dance"})
    lines = [worker.receive() for _ in range(3)]
    assert sum(line.get("level") == "warn" for line in lines) == 3
    assert worker.command({"command": "adopt", "generation": 0})["generation"] == 0


def test_a_killed_worker_is_replaced_and_reconnects(new_pool: NewPool, link: Connect) -> None:
    pool = new_pool().start()
    pool.ask("spawn", slot=0)
    pool.ask("spawn", slot=1)
    worker, other = link(pool.paths[0]), link(pool.paths[1])
    first = worker.event("hello")["pid"]
    other.event("hello")
    os.kill(pool.worker_pid(0), signal.SIGKILL)
    died = pool.event("worker-died")
    assert died == {"event": "worker-died", "slot": 0, "signal": 9, "respawned": True}
    assert worker.event("hello")["pid"] != first
    assert worker.command({"command": "adopt", "generation": 0})["generation"] == 0
    assert other.command({"command": "adopt", "generation": 0})["generation"] == 0
    assert pool.rows[0].starts == 2


def test_deaths_leave_no_fds_behind(new_pool: NewPool, link: Connect) -> None:
    pool = new_pool().start()
    pool.ask("spawn", slot=0)
    pool.ask("spawn", slot=1)
    worker, other = link(pool.paths[0]), link(pool.paths[1])
    other.event("hello")
    worker.event("hello")
    worker.command({"command": "adopt", "generation": 0})
    before = len(pool.fds())
    for _ in range(20):
        os.kill(pool.worker_pid(0), signal.SIGKILL)
        pool.event("worker-died")
        worker.event("hello")
        worker.command({"command": "adopt", "generation": 0})
    assert len(pool.fds()) == before
    assert other.command({"command": "adopt", "generation": 0})["generation"] == 0


def test_a_worker_killed_while_it_starts_leaves_no_fds_behind(new_pool: NewPool) -> None:
    pool = new_pool().start()
    pool.ask("spawn", slot=0)
    before = len(pool.fds())
    deadline = time.monotonic() + 3
    kills, pool_pid = 0, pool.pool_pid()
    while time.monotonic() < deadline and kills < 60:
        for pid in pool.children():
            if pid != pool_pid:
                with contextlib.suppress(ProcessLookupError):  # it has just been reaped
                    os.kill(pid, signal.SIGKILL)
                kills += 1
        time.sleep(0.003 * (kills % 7))
    assert kills > 10
    while pool.ask("spawn", slot=0)["pid"] != pool.rows[0].pid:
        time.sleep(0.01)
    assert len(pool.fds()) == before


def test_a_worker_that_dies_at_once_again_and_again_waits_longer(new_pool: NewPool) -> None:
    pool = new_pool().start()
    pool.ask("spawn", slot=0)
    begin = time.monotonic()
    for _ in range(12):
        while len(pool.processes()) < 3:
            time.sleep(0.001)
        os.kill(pool.worker_pid(0), signal.SIGKILL)
        pool.event("worker-died")
    # Five deaths without a delay, then delays from 20 ms that double up to a second.
    assert time.monotonic() - begin > 1.0


def test_a_worker_is_killed_by_order(new_pool: NewPool, link: Connect) -> None:
    pool = new_pool().start()
    first = pool.ask("spawn", slot=1)["pid"]
    worker = link(pool.paths[1])
    worker.event("hello")
    assert "error" not in pool.ask("kill", slot=1)
    died = pool.event("worker-died")
    assert died == {"event": "worker-died", "slot": 1, "signal": 9, "respawned": True}
    assert worker.event("hello")["pid"] != first
    assert "error" not in pool.ask("kill", slot=0)  # the slot has no worker
    assert "error" in pool.ask("kill", slot=99)


def test_a_worker_that_was_stopped_is_not_replaced(new_pool: NewPool, link: Connect) -> None:
    pool = new_pool().start()
    pool.ask("spawn", slot=0)
    worker = link(pool.paths[0])
    worker.event("hello")
    worker.send({"command": "stop"})
    died = pool.event("worker-died")
    assert died == {"event": "worker-died", "slot": 0, "status": 0, "respawned": False}
    assert set(pool.processes()) == ALWAYS


def test_signals_of_the_terminal_do_not_end_pool_or_workers(new_pool: NewPool) -> None:
    pool = new_pool(sandbox="none").start()
    pool.ask("spawn", slot=0)
    before = pool.processes()
    for pid in before.values():
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
    assert pool.ask("spawn", slot=0)["pid"] == pool.worker_pid(0)
    assert pool.processes() == before


def test_without_a_supervisor_the_pool_and_its_workers_end(new_pool: NewPool) -> None:
    pool = new_pool(sandbox="none").start()
    pool.ask("spawn", slot=0)
    pidfd = os.pidfd_open(pool.worker_pid(0))
    pool.channel.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            signal.pidfd_send_signal(pidfd, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the worker is still there")
    os.close(pidfd)
