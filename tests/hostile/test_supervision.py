# SPDX-License-Identifier: Apache-2.0
"""Nothing gives up: whichever process dies, and however often, the share is served again.

A re-created keeper is not below the process that was launched, so the processes of a daemon are
found by its name, which is that of its socket and the only one of its kind.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
import pytest

from tests.waiting import HANG

from .conftest import OPTIONS
from .daemon import Daemon, wait_until
from .driver import GET_FEATURES, Frontend
from .fuse import ROOT, Guest, Op
from .hung import stop

SANDBOXES = 7  # deaths of sandboxes before a VMM has come
KILLS = 200  # of supervisors, with a working guest
ALTERNATIONS = 40
SECONDS = 120.0  # a bound for the tests with many kills

# The processes that are killed, one after the other. A kill waits only until the other process has
# noticed the death before.
ORDERS = {
    "keeper": "k",
    "keeper and supervisor": "ks",
    "supervisor and keeper": "sk",
    "keepers": "kkk",
    "all": "kskkssk",
    "supervisors between keepers": "ksssk",
}
ROLES = {"k": "keeper", "s": "supervisor"}


class Family:
    """The processes of one daemon, also when the launched process is gone."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._root = Path(f"/proc/{daemon.the('supervisor')}/cwd").readlink()

    def trusted(self, role: str) -> list[int]:
        """The pids of the living keeper or supervisor. Their working directory is the runtime
        folder, which no other daemon has."""
        return [pid for pid, title in self._titles().items() if title.endswith(role)]

    def the(self, role: str) -> int:
        wait_until(lambda: len(self.trusted(role)) == 1, 30, f"there is one {role}")
        return self.trusted(role)[0]

    def _titles(self) -> dict[int, str]:
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if Path(f"/proc/{process.pid}/cwd").readlink() == self._root:
                    found[process.pid] = " ".join(process.cmdline()).strip()
        return found

    def launcher(self) -> psutil.Process:
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                links = Path(f"/proc/{process.pid}/fd").iterdir()
                if " launcher" in " ".join(process.cmdline()) and any(
                    str(link.readlink()) == f"{self.daemon.socket}.pid" for link in links
                ):
                    return process
        raise AssertionError("there is no launcher")

    def everything(self) -> list[psutil.Process]:
        launcher = self.launcher()
        trusted = [psutil.Process(pid) for pid in self._titles()]
        return [launcher, *launcher.children(recursive=True), *trusted]

    def kill(self, role: str) -> int:
        """Kill the keeper or supervisor; returns its pid when it is gone."""
        victim = self.the(role)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in self.trusted(role), 30, f"the {role} is gone")
        return victim

    def pid_in_file(self) -> int:
        return int(Path(f"{self.daemon.socket}.pid").read_text())

    def end(self) -> None:
        """End the daemon by a signal to its keeper, and check that nothing stays."""
        everything = self.everything()
        os.kill(self.the("keeper"), signal.SIGTERM)
        self.daemon.process.wait(HANG)
        assert not psutil.wait_procs(everything, HANG)[1]
        wait_until(lambda: not Path(self.daemon.socket).exists(), 30, "the socket is removed")
        assert not self._root.exists()

    def fds(self) -> int:
        return len(list(Path(f"/proc/{self.the('supervisor')}/fd").iterdir()))


@pytest.fixture
def family() -> Iterator[Family]:
    with Daemon(*OPTIONS) as daemon:
        daemon.await_pool()
        family = Family(daemon)
        try:
            yield family
            if family.trusted("keeper"):
                family.end()
        finally:
            with suppress(AssertionError, psutil.Error):
                for process in family.everything():
                    process.kill()


@pytest.fixture
def guest(family: Family) -> Iterator[Guest]:
    with Frontend(family.daemon.socket) as frontend:
        guest = Guest(frontend.setup(2))
        guest.init()
        yield guest


class Work(threading.Thread):
    """A guest that works until it is stopped. A request that fails ends it."""

    def __init__(self, guest: Guest) -> None:
        super().__init__()
        self._guest, self._ended = guest, threading.Event()
        self.rounds = 0

    def run(self) -> None:
        while not self._ended.is_set():
            for queue in (1, 2):
                self._guest.ask(Op.GETATTR, ROOT, bytes(16), room=104, queue=queue)
            self.rounds += 1
            time.sleep(0.001)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def test_sandboxes_that_die_before_a_vmm_speaks_are_replaced_for_ever(family: Family) -> None:
    daemon = family.daemon
    for _ in range(SANDBOXES):
        holder = psutil.Process(daemon.the(" holder"))
        os.kill(holder.pid, signal.SIGKILL)
        assert not psutil.wait_procs([holder], HANG)[1]
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.getattr(ROOT)
    assert "starting another pool in 0.05 s, after 4 deaths in a row" in daemon.log.read_text()


@pytest.mark.parametrize("order", ORDERS.values(), ids=list(ORDERS))
def test_keeper_and_supervisor_replace_each_other(family: Family, guest: Guest, order: str) -> None:
    before = family.fds()
    for role in order:
        victim = family.kill(ROLES[role])
        assert family.the(ROLES[role]) != victim
        guest.getattr(ROOT)
        assert guest.frontend.ask(GET_FEATURES).u64
    wait_until(lambda: family.pid_in_file() == family.the("keeper"), 30, "the pid is written")
    wait_until(lambda: family.fds() <= before, 30, "no fd is left over")
    assert len(family.trusted("keeper")) == len(family.trusted("supervisor")) == 1


def test_without_a_vmm_a_keeper_that_dies_is_replaced(family: Family) -> None:
    for role in ("keeper", "supervisor", "keeper"):
        family.kill(role)
    with Frontend(family.daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.getattr(ROOT)


def test_the_keeper_dies_while_a_sandbox_is_built(family: Family, guest: Guest) -> None:
    """The supervisor waits for the template of pools, and creates a keeper in that wait."""
    before = family.fds()
    (template,) = [p for p in family.everything() if "template" in "".join(p.cmdline())]
    stop(template.pid)
    os.kill(family.daemon.the(" holder"), signal.SIGKILL)
    wait_until(lambda: not family.daemon.titled(" holder"), 30, "the sandbox has ended")
    for _ in range(2):
        family.kill("keeper")
        family.the("keeper")
    template.resume()
    guest.getattr(ROOT)
    assert "failed" not in family.daemon.log.read_text()
    wait_until(lambda: family.fds() <= before, 30, "no fd is left over")


def _until(deadline: float, rounds: int, step: Callable[[], None]) -> int:
    done = 0
    while done < rounds and time.monotonic() < deadline:
        step()
        done += 1
    return done


def test_hundreds_of_supervisors_die_while_a_guest_works(family: Family, guest: Guest) -> None:
    before, chance = family.fds(), random.Random(2)  # noqa: S311

    def step() -> None:
        for pid in family.trusted("supervisor"):
            os.kill(pid, signal.SIGKILL)
        time.sleep(chance.uniform(0, 0.1))

    with Work(guest) as work:
        _until(time.monotonic() + SECONDS, KILLS, step)
        assert guest.frontend.ask(GET_FEATURES).u64
    assert work.rounds
    wait_until(lambda: family.fds() <= before, 30, "no fd is left over")


def test_keepers_and_supervisors_die_in_turn_under_load(family: Family, guest: Guest) -> None:
    before, turn = family.fds(), iter("ks" * ALTERNATIONS)

    def step() -> None:
        role = ROLES[next(turn)]
        family.kill(role)
        family.the(role)

    with Work(guest) as work:
        assert _until(time.monotonic() + SECONDS, ALTERNATIONS, step) >= 4
        assert guest.frontend.ask(GET_FEATURES).u64
    assert work.rounds
    wait_until(lambda: family.fds() <= before, 30, "no fd is left over")


def test_keeper_and_supervisor_die_together(family: Family) -> None:
    """No process is left that could create them again, so the launcher ends the daemon."""
    everything = family.everything()
    for role in ("supervisor", "keeper"):
        os.kill(family.the(role), signal.SIGSTOP)
    for role in ("supervisor", "keeper"):
        os.kill(family.the(role), signal.SIGKILL)
    family.daemon.process.wait(HANG)
    assert not psutil.wait_procs(everything, HANG)[1]
    assert not Path(family.daemon.socket).exists()
