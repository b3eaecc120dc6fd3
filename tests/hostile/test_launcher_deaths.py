# SPDX-License-Identifier: Apache-2.0
"""Launcher and deputy die in any order, also beside keeper and supervisor, and take each other's
place."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode
from tests.waiting import HANG

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Guest
from .hung import stop
from .injector import fds

LINE = "the launcher died; its deputy has taken over"
BOTH = (" launcher", " deputy")


@pytest.fixture
def daemon(sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    with Daemon("--keep-listening", "--request-queues=1", mode=sandbox_mode) as running:
        running.await_pool()
        yield running


def _kill(daemon: Daemon, title: str) -> None:
    """Kill a process that launcher and deputy create again, and wait until both are there."""
    pid = daemon.the(title)
    before = [daemon.the(each) for each in BOTH]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in [daemon.the(each) for each in BOTH], 10, f"another{title}")
    if title == " launcher":
        assert daemon.the(" launcher") == before[1]


def _lose_sandbox(daemon: Daemon, guest: Guest) -> None:
    holder = daemon.the(" holder")
    os.kill(holder, signal.SIGKILL)
    wait_until(lambda: daemon.the(" holder") != holder, 10, "another sandbox")
    guest.getattr(ROOT)


@in_each_mode
@pytest.mark.parametrize(
    "titles",
    [
        (" launcher",) * 3,
        (" deputy", " launcher", " deputy"),
        (" launcher", " deputy", " launcher"),
    ],
)
def test_each_takes_the_place_of_the_other(daemon: Daemon, titles: Sequence[str]) -> None:
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        for title in titles:
            _kill(daemon, title)
            guest.getattr(ROOT)
        _lose_sandbox(daemon, guest)
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.getattr(ROOT)
    wait_until(lambda: daemon.log.read_text().count(LINE) == titles.count(" launcher"), 10, "lines")


def test_the_next_launcher_has_what_the_first_one_had(daemon: Daemon) -> None:
    def state() -> tuple[list[str], list[str]]:
        launcher, deputy = (sorted(fds(daemon.the(title)).values()) for title in BOTH)
        return launcher, deputy

    before = state()
    for title in BOTH * 2:
        _kill(daemon, title)
    wait_until(lambda: [len(x) for x in state()] == [len(x) for x in before], 10, "no fd leaks")


class Family:
    """The processes of a daemon, whichever parents they have: keeper and supervisor by their
    working directory, all others by the session of the launcher."""

    def __init__(self, daemon: Daemon) -> None:
        self._runtime = Path(f"/proc/{daemon.the('supervisor')}/cwd").readlink()
        self._session = os.getsid(daemon.the(" launcher"))

    def titled(self, role: str) -> list[int]:
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                title = " ".join(process.cmdline()).strip()
                if f" {role}" in title and self._has(process.pid):
                    found.append(process.pid)
        return found

    def _has(self, pid: int) -> bool:
        where = Path(f"/proc/{pid}/cwd")
        return os.getsid(pid) == self._session or where.readlink() == self._runtime


@pytest.mark.parametrize("role", ["keeper", "supervisor"])
def test_sandboxes_are_found_after_two_deaths(daemon: Daemon, role: str) -> None:
    """Without its first keeper and its launcher a sandbox is a child of a process of the host, and
    ends with its VMM all the same."""
    family = Family(daemon)
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        (old,) = family.titled(role)
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: family.titled(role) not in ([], [old]), 10, f"another {role}")
        (launcher,) = family.titled("launcher")
        (holder,) = family.titled("holder")
        os.kill(launcher, signal.SIGKILL)
        wait_until(lambda: LINE in daemon.log.read_text(), 10, "the deputy has taken over")
        os.kill(holder, signal.SIGKILL)
        guest.getattr(ROOT)
        wait_until(lambda: len(family.titled("holder")) == 1, 10, "the title of the next holder")
        (holder,) = family.titled("holder")
    wait_until(lambda: holder not in family.titled("holder"), 10, "the sandbox ends with its VMM")
    for pid in family.titled("keeper"):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not family.titled(""), 10, "everything has ended")
    assert not Path(daemon.socket).exists()


def test_a_request_that_a_dead_launcher_had_is_made_again(daemon: Daemon) -> None:
    with Frontend(daemon.socket) as frontend:
        launcher = daemon.the(" launcher")
        guest = Guest(frontend.setup(1))
        guest.init()
        stop(launcher)
        holder = daemon.the(" holder")
        os.kill(holder, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(holder), 10, "the sandbox has ended")
        os.kill(launcher, signal.SIGKILL)
        guest.getattr(ROOT)
        wait_until(lambda: len(daemon.titled(" holder")) == 1, 10, "one sandbox is left")


def test_the_pid_file_names_the_keeper_again(daemon: Daemon) -> None:
    """A launcher may die with the request to name a new keeper."""
    file = Path(f"{daemon.socket}.pid")
    file.write_text("0\n")
    _kill(daemon, " launcher")
    wait_until(lambda: file.read_text() == f"{daemon.process.pid}\n", 10, "the keeper is named")


@pytest.mark.parametrize("title", BOTH)
def test_the_one_that_lives_cleans_up(daemon: Daemon, title: str) -> None:
    runtime = Path(f"/proc/{daemon.the('supervisor')}/cwd").readlink()
    family = daemon.processes()
    os.kill(daemon.the(title), signal.SIGKILL)
    daemon.process.terminate()
    assert daemon.process.wait(HANG) == 0
    assert not psutil.wait_procs(family, HANG)[1]
    wait_until(lambda: not runtime.exists(), 10, "the runtime folder is removed")
    wait_until(lambda: not Path(daemon.socket).exists(), 10, "the socket file is removed")
    assert not Path(f"{daemon.socket}.pid").exists()
