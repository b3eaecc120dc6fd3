# SPDX-License-Identifier: Apache-2.0
"""A short run of scripts/chaos, and proofs that its workloads see faults."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .guest import IN_GUEST, GuestShare
from .killer import ALL, KILL, STOP, Event, Killer
from .probe import Stall, cause, longest_stalls
from .report import Report
from .roles import ROLES, Role
from .run import Plan, run
from .service import ServiceShare
from .tree import Tree
from .workload import LOST_LOCK, Failure, Steps

ROUNDS = 10  # of the tree: enough for each kind of operation


@pytest.mark.parametrize("queues", [1, 4])
def test_no_user_sees_that_processes_die(requires: Callable[[str], str], queues: int) -> None:
    for what in ("root", "/dev/fuse", "fio", "git"):
        requires(what)
    report = run(Plan(queues, 20, seed=queues))
    assert report.is_good, report.markdown()
    died = {role for event in report.events for role in event.what.split(" + ")}
    assert {"worker", "holder", "pool"} <= died, died
    assert all(report.counts.values()), report.counts


def test_no_user_sees_that_a_service_ends_and_starts_again(
    requires: Callable[[str], str],
) -> None:
    for what in ("root", "/dev/fuse", "git"):
        requires(what)
    report = run(Plan(2, 20, seed=3, workloads=("tree", "file", "git"), kind=ServiceShare))
    assert report.is_good, report.markdown()
    assert any(event.what == ALL for event in report.events), report.markdown()
    assert all(report.counts.values()), report.counts


@pytest.mark.guest
def test_no_user_in_a_guest_sees_that_processes_die(requires: Callable[[str], str]) -> None:
    requires("root")
    report = run(Plan(2, 15, seed=4, workloads=IN_GUEST, kind=GuestShare))
    assert report.is_good, report.markdown()
    assert report.events
    assert all(report.counts[name] for name in IN_GUEST), report.counts


def test_no_user_sees_that_launchers_die(requires: Callable[[str], str]) -> None:
    for what in ("root", "/dev/fuse"):
        requires(what)
    roles = ("launcher", "launcher-deputy", "template", "holder", "supervisor", "keeper")
    report = run(Plan(1, 8, seed=1, roles=roles, workloads=("tree", "file")))
    assert report.is_good, report.markdown()
    assert any("launcher" in event.what for event in report.events)


def test_an_errno_that_the_daemon_gives_is_reported(requires: Callable[[str], str]) -> None:
    for what in ("root", "/dev/fuse"):
        requires(what)
    report = run(Plan(1, 3, seed=1, workloads=("tree",), options=("--readonly",)))
    assert not report.is_good
    assert {failure.error for failure in report.failures} == {"EROFS"}, report.markdown()


def faulty(call: Callable[..., Any], number: int, fault: str) -> Callable[..., Any]:
    """`call`, except that its `number`-th use that succeeds is lost, done twice, or fails."""
    uses = 0

    def changed(*args: Any, **keywords: Any) -> Any:
        nonlocal uses
        uses += 1
        if uses == number and fault == "lost":
            return None
        if uses == number and fault == "failed":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        result = call(*args, **keywords)
        if uses == number:
            call(*args, **keywords)
        return result

    return changed


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("mkdir", "lost"),
        ("mkdir", "twice"),
        ("mkdir", "failed"),
        ("rename", "lost"),
        ("rename", "twice"),
        ("unlink", "twice"),
        ("link", "lost"),
        ("symlink", "twice"),
        ("setxattr", "failed"),
        ("fsync", "failed"),
        ("chmod", "lost"),
    ],
)
def test_a_fault_is_seen_by_the_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fault: str
) -> None:
    """In each of some rounds another use of the call is faulty; at least one round must see it."""
    seen = 0
    for number in range(1, ROUNDS + 1):
        home = tmp_path / str(number)
        home.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(os, call, faulty(getattr(os, call), number, fault))
            try:
                Tree(home, random.Random(number), Steps("tree")).run(300)  # noqa: S311
            except (AssertionError, OSError):
                seen += 1
    assert seen


def test_the_tree_sees_nothing_where_nothing_is_wrong(tmp_path: Path) -> None:
    for number in range(ROUNDS):
        home = tmp_path / str(number)
        home.mkdir()
        tree = Tree(home, random.Random(number), Steps("tree"))  # noqa: S311
        tree.run(300)
        tree.check(home)


class Population:
    """A daemon of which each role has one process; no process is ever created again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pids = {name: [1000 + number] for number, name in enumerate(ROLES)}
        monkeypatch.setattr(Role, "pids", lambda role, _: self.pids[role.name])
        monkeypatch.setattr(os, "kill", lambda *_: None)
        monkeypatch.setattr(Path, "exists", lambda _: True)  # in /proc


@pytest.mark.parametrize(("first", "second"), [("keeper", "supervisor"), ("deputy", "guard")])
def test_of_two_partners_the_second_lives_until_the_first_is_there_again(
    monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    population = Population(monkeypatch)
    killer = Killer("daemon", [first, second], seed=1, fastest=50.0)
    for now in range(1000):
        killer._strike(100.0 * now)  # noqa: SLF001
        killer._end_stops(float("inf"))  # noqa: SLF001
    killed = [event for event in killer.events if event.way != STOP]
    assert len(killed) == 1
    assert killed[0].what in (first, second)
    population.pids[killed[0].what] = [2000]
    for now in range(1000, 2000):
        killer._strike(100.0 * now)  # noqa: SLF001
    assert len(killer.events) > 1


def test_a_lock_must_not_be_lost_even_with_a_sandbox() -> None:
    lost = Failure(2.0, "fcntl", "locks", "/a", LOST_LOCK, "text")
    deaths = [Event(1.0, 1.0, "holder + pool", KILL, (2, 3))]
    assert not Report(1, 7, 60.0, events=deaths, failures=[lost]).is_good


def test_more_must_not_be_lost_than_the_deaths_explain() -> None:
    deaths = [Event(1.0, 1.0, "worker", KILL, (2,))]
    assert Report(1, 7, 60.0, events=deaths, held_files=1).is_good
    assert not Report(1, 7, 60.0, events=deaths, held_files=2).is_good
    assert not Report(1, 7, 60.0, events=deaths, lost_files=1).is_good


def test_a_stall_after_the_death_of_a_holder_is_its_fault() -> None:
    worker = Event(1.0, 1.0, "worker", KILL, (2,))
    holder = Event(1.02, 1.02, "holder", KILL, (3,))
    assert cause(Stall(1.04, 1.5), [worker, holder]) == holder
    assert cause(Stall(1.0, 1.5), [worker, holder]) == holder
    assert cause(Stall(1.3, 1.5), [worker, holder]) is None
    assert cause(Stall(1.0, 1.5), [Event(0.5, 3.0, "worker", STOP, (4,)), holder]) == holder


def test_a_stall_is_the_fault_of_the_longest_stop_or_else_of_the_first_kill() -> None:
    first = Event(1.0, 1.0, "worker", KILL, (2,))
    second = Event(1.1, 1.1, "supervisor", KILL, (3,))
    stop = Event(5.0, 7.0, "worker", STOP, (4,))
    late = Event(5.5, 5.5, "worker", KILL, (5,))
    stalls = [Stall(1.001, 1.2), Stall(5.0, 7.1), Stall(20.0, 20.1)]
    longest = longest_stalls(stalls, [first, second, stop, late])
    assert longest == {id(first): pytest.approx(0.199), id(stop): pytest.approx(2.1)}


def test_a_report_names_the_deaths_before_a_failure() -> None:
    report = Report(1, 7, 60.0)
    report.events = [Event(float(at), float(at), "worker", KILL, (2,)) for at in range(6)]
    report.failures = [Failure(3.5, "tree", "mkdir", "/a", "EIO", "text")]
    text = report.markdown()
    assert not report.is_good
    assert "mkdir /a: EIO" in text
    assert "worker (kill) at 3.000" in text
    assert "worker (kill) at 4.000" not in text
