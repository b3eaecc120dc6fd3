# SPDX-License-Identifier: Apache-2.0
"""When memory is short the kernel kills a process that is replaced, and no process that the share
cannot lose."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sandbox_modes import NAMESPACE, SandboxMode, in_every_mode
from vfsd.worker.oom_score import OomScore

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Guest
from .injector import Injector

OWN = Path("/proc/self/oom_score_adj")
RAISE = 500
TO_STAY = ("keeper", " launcher", " deputy", " template", "supervisor", " holder")
REPLACED = ("pool", "worker ")


def scores(daemon: Daemon, *words: str) -> list[int]:
    """The different scores of the processes with these words in their title."""
    found = (Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in daemon.titled(*words))
    return sorted({int(score) for score in found})


@contextmanager
def as_the_service_manager_starts_it(score: int) -> Iterator[None]:
    """Start processes in this context with OOMScoreAdjust= as a service manager does."""
    before = OWN.read_text()
    OWN.write_text(str(score))
    try:
        yield
    finally:
        OWN.write_text(before)


def check(daemon: Daemon, own: int, of_workers: int) -> None:
    for title in TO_STAY:
        assert scores(daemon, title) == [own], title
    assert scores(daemon, " handles") in ([own], [])  # the broker and its guard, where they run
    for title in REPLACED:
        assert scores(daemon, title) == [of_workers], title


@in_every_mode
def test_a_worker_goes_first(sandbox_mode: SandboxMode) -> None:
    """The next worker of a slot and the next pool have the same score as the first."""
    own = int(OWN.read_text())
    with Daemon(mode=sandbox_mode) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(2))
        guest.init()
        assert len(daemon.titled("worker ")) == 2
        check(daemon, own, own + RAISE)
        for victim in (*daemon.titled("worker "), daemon.the("pool")):
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: victim not in daemon.pids(), 5, "it is dead")  # noqa: B023
        for queue in (1, 2):
            guest.lookup(ROOT, b".", queue=queue)
        wait_until(lambda: len(daemon.titled("worker ")) == 2, 5, "workers again")
        daemon.the("pool")
        check(daemon, own, own + RAISE)


def fd_of_score(pid: int) -> int:
    links = {path: str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return next(int(path.name) for path, link in links.items() if link.endswith("oom_score_adj"))


def test_a_worker_is_created_again_after_the_score_was_closed() -> None:
    """A worker that was taken over shares the fd table with the pool."""
    with Daemon(mode=NAMESPACE) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        worker = daemon.the("worker ")
        with Injector(worker) as attacker:
            assert attacker.call("close", fd_of_score(daemon.the("pool"))) == 0
        os.kill(worker, signal.SIGKILL)
        guest.lookup(ROOT, b".")
        assert daemon.the("worker ") != worker


@pytest.mark.parametrize(("own", "of_workers"), [(300, 800), (700, 1000), (1000, 1000)])
def test_the_score_of_the_service_counts(own: int, of_workers: int) -> None:
    with as_the_service_manager_starts_it(own):
        daemon = Daemon(mode=NAMESPACE)
    with daemon, Frontend(daemon.socket) as frontend:
        Guest(frontend.setup(1)).init()
        check(daemon, own, of_workers)


@pytest.mark.parametrize(("own", "of_workers"), [(-999, -499), (-1000, -1000), (0, RAISE)])
def test_what_the_operator_exempts_stays_exempt(own: int, of_workers: int) -> None:
    """CAP_SYS_RESOURCE is needed to set such a score, and few containers have it."""
    assert OomScore(own=own).of_workers == of_workers
