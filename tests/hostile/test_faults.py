# SPDX-License-Identifier: Apache-2.0
"""Workers that fault or make forbidden calls: their queues stop, and the other queues run on."""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.sandbox_modes import SandboxMode, in_each_mode, in_every_mode

from .conftest import OPTIONS, QUEUES
from .daemon import Daemon, wait_until
from .driver import Frontend, NoReplyError
from .fuse import ROOT, Guest
from .injector import Injector, Killed

CANARY = 0x28  # offset in a thread's control block: glibc's stack_guard on x86-64
SECONDS = 20.0
NewDaemon = Callable[..., Daemon]


@pytest.fixture
def new_daemon(sandbox_mode: SandboxMode) -> Iterator[NewDaemon]:
    running: list[Daemon] = []

    def start(*options: str) -> Daemon:
        running.append(Daemon(*OPTIONS, *options, mode=sandbox_mode))
        return running[-1]

    yield start
    for daemon in running:
        daemon.close()


@pytest.fixture
def new_guest() -> Iterator[Callable[[Daemon], Guest]]:
    """A guest with a connection of its own, on which INIT is done."""
    connections: list[Frontend] = []

    def connect(daemon: Daemon) -> Guest:
        connections.append(Frontend(daemon.socket).setup(QUEUES))
        guest = Guest(connections[-1])
        guest.init()
        return guest

    yield connect
    for frontend in connections:
        frontend.close()


NewGuest = Callable[[Daemon], Guest]


def worker_of(daemon: Daemon, queue: int) -> int:
    return daemon.the("worker", f"queue {queue}")


def end_and_wait(daemon: Daemon, queue: int, number: signal.Signals) -> None:
    """End the worker of a queue by a signal."""
    pid = worker_of(daemon, queue)
    os.kill(pid, number)
    wait_until(lambda: pid not in daemon.pids(), SECONDS, "the worker's death")


def is_served(guest: Guest, queue: int, seconds: float = SECONDS) -> bool:
    pending = guest.submit(1, ROOT, b".\0", room=4096, queue=queue)  # LOOKUP
    try:
        guest.finish(pending, seconds)
    except NoReplyError:
        return False
    return True


def restart_seconds(guest: Guest) -> float:
    """The seconds that a restart of a ring takes; the shortest of three times, since the machine
    may be loaded."""
    spent = []
    for _ in range(3):
        begun = time.monotonic()
        guest.frontend.restart_ring(1)
        spent.append(time.monotonic() - begun)
    return min(spent)


def wait_for_line(daemon: Daemon, *words: str) -> None:
    def is_there() -> bool:
        lines = daemon.log.read_text(errors="replace").splitlines()
        return any(all(word in line for word in words) for line in lines)

    wait_until(is_there, SECONDS, f"a line with {words}")


def signalled(guest: Guest, seconds: float) -> list[int]:
    """The queues whose error eventfd the daemon has written; waits for the first queue."""
    rings = {ring.err_fd: index for index, ring in guest.frontend.rings.items()}
    ready, _, _ = select.select(list(rings), [], [], seconds)
    return [rings[fd] for fd in ready]


def assert_only_that_queue_has_stopped(daemon: Daemon, guest: Guest, queue: int) -> None:
    wait_for_line(daemon, f"worker {queue - 1}", "not created again")
    wait_for_line(daemon, f"queue {queue} is stopped")
    assert signalled(guest, SECONDS) == [queue]
    assert not is_served(guest, queue, 0.3)
    for other in range(1, QUEUES + 1):
        assert other == queue or is_served(guest, other), f"queue {other} has also stopped"


@in_every_mode
def test_a_forbidden_call_ends_the_slot_and_no_other(
    new_daemon: NewDaemon, new_guest: NewGuest
) -> None:
    daemon = new_daemon()
    guest = new_guest(daemon)
    with Injector(worker_of(daemon, 2)) as worker, pytest.raises(Killed, match="SIGSYS"):
        worker.call("kill", 1, 0)
    wait_for_line(daemon, "worker 1", "SIGSYS")
    assert_only_that_queue_has_stopped(daemon, guest, 2)


def test_a_change_of_the_device_does_not_wait_for_a_slot_that_has_ended(
    new_daemon: NewDaemon, new_guest: NewGuest
) -> None:
    daemon = new_daemon()
    guest = new_guest(daemon)
    end_and_wait(daemon, 2, signal.SIGSYS)
    wait_for_line(daemon, "queue 2 is stopped")
    assert restart_seconds(guest) < 4, "the supervisor waits 5 s for a worker"
    assert is_served(guest, 1)


def test_a_frontend_that_connects_again_is_served_on_every_queue(
    new_daemon: NewDaemon, new_guest: NewGuest
) -> None:
    daemon = new_daemon()
    guest = new_guest(daemon)
    end_and_wait(daemon, 2, signal.SIGSYS)
    wait_for_line(daemon, "queue 2 is stopped")
    guest.frontend.close()
    again = new_guest(daemon)
    assert all(is_served(again, queue) for queue in range(1, QUEUES + 1))


def test_a_supervisor_that_follows_knows_of_a_slot_that_has_ended(
    new_daemon: NewDaemon, new_guest: NewGuest
) -> None:
    daemon = new_daemon()
    guest = new_guest(daemon)
    end_and_wait(daemon, 2, signal.SIGSYS)
    wait_for_line(daemon, "queue 2 is stopped")
    guest.frontend.restart_ring(1)  # this message saves the supervisor's state
    supervisor = daemon.the("supervisor")
    os.kill(supervisor, signal.SIGKILL)
    wait_until(
        lambda: daemon.titled("supervisor") not in ([], [supervisor]),
        SECONDS,
        "the next supervisor",
    )
    assert restart_seconds(guest) < 4, "the supervisor waits 5 s for a worker"
    assert is_served(guest, 1)


@in_each_mode
def test_faults_of_all_workers_are_counted_together(
    new_daemon: NewDaemon, new_guest: NewGuest
) -> None:
    daemon = new_daemon("--worker-faults=3")
    guest = new_guest(daemon)
    for queue, number in ((1, signal.SIGSEGV), (2, signal.SIGBUS), (3, signal.SIGABRT)):
        end_and_wait(daemon, queue, number)
        assert is_served(guest, queue)
    end_and_wait(daemon, 4, signal.SIGILL)
    wait_for_line(daemon, "worker 3", "more than 3 faults within an hour")
    assert_only_that_queue_has_stopped(daemon, guest, 4)


def test_kills_never_count(new_daemon: NewDaemon, new_guest: NewGuest) -> None:
    daemon = new_daemon("--worker-faults=1")
    guest = new_guest(daemon)
    for _ in range(4):
        end_and_wait(daemon, 1, signal.SIGKILL)
        assert is_served(guest, 1)


def canary(pid: int) -> bytes:
    with Injector(pid) as process:
        return process.read(process.thread_pointer + CANARY, 8)


@in_each_mode
def test_each_worker_has_a_canary_of_its_own(new_daemon: NewDaemon, new_guest: NewGuest) -> None:
    daemon = new_daemon()
    guest = new_guest(daemon)
    pool = daemon.the("pool")
    seen = [canary(pool)] + [canary(worker_of(daemon, queue)) for queue in range(1, QUEUES + 1)]
    for _ in range(2):
        end_and_wait(daemon, 1, signal.SIGKILL)
        assert is_served(guest, 1)
        seen.append(canary(worker_of(daemon, 1)))
    assert len(set(seen)) == len(seen)
    assert all(word[0] == 0 for word in seen), "the first byte ends a string"


@in_each_mode
def test_no_process_of_the_sandbox_leaves_a_core(
    new_daemon: NewDaemon, new_guest: NewGuest
) -> None:
    require("root")
    daemon = new_daemon()
    new_guest(daemon)
    for pid in daemon.titled("pool") + daemon.titled("worker"):
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
        assert core[4:6] == ["0", "0"]
