# SPDX-License-Identifier: Apache-2.0
"""The template from which pools are forked: connecting again executes nothing, and a crash is
followed by other addresses."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Guest
from .hung import stop
from .injector import fds

PF_FORKNOEXEC: Final = 0x40  # a process that was forked and has executed nothing since
_FLAGS: Final = 6  # place in /proc/PID/stat after the name, proc(5)


@pytest.fixture
def daemon(sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    with Daemon("--keep-listening", "--request-queues=1", mode=sandbox_mode) as running:
        running.await_pool()
        yield running


def _is_only_forked(pid: int) -> bool:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return bool(int(fields[_FLAGS]) & PF_FORKNOEXEC)


def _libc(pid: int) -> str:
    """The address of the C library."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return next(line.split("-")[0] for line in maps if "libc.so" in line)


@dataclass(frozen=True)
class Holder:
    """What is known of the holder of a sandbox. `libc`: the address of the C library."""

    pid: int
    is_only_forked: bool
    libc: str


def _serve_one(daemon: Daemon) -> Holder:
    """Serve a VMM; returns the holder of its sandbox."""
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.getattr(ROOT)
        wait_until(lambda: len(daemon.titled(" holder")) == 1, 10, "the last sandbox has ended")
        pid = daemon.the(" holder")
        return Holder(pid, _is_only_forked(pid), _libc(pid))


def _crash_worker(daemon: Daemon) -> None:
    """Serve a VMM whose worker dies of a fault."""
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        worker = daemon.the(" worker")
        os.kill(worker, signal.SIGSEGV)
        _await_another(daemon, " worker", worker)
        guest.getattr(ROOT)


def _await_another(daemon: Daemon, title: str, pid: int) -> None:
    wait_until(lambda: daemon.the(title) != pid, 10, f"another {title}")


@in_each_mode
def test_a_vmm_that_connects_again_costs_no_exec(daemon: Daemon) -> None:
    template = daemon.the(" template")
    before = fds(template)
    holders = [_serve_one(daemon) for _ in range(5)]
    assert len({holder.pid for holder in holders}) == 5
    assert all(holder.is_only_forked for holder in holders)
    assert not _is_only_forked(template)
    assert daemon.the(" template") == template
    assert {holder.libc for holder in holders} == {_libc(template)}
    wait_until(lambda: fds(template) == before, 10, "the template has answered")


def test_a_pool_is_a_child_of_the_launcher(daemon: Daemon) -> None:
    parents = [psutil.Process(daemon.the(title)).ppid() for title in (" holder", " template")]
    assert parents == [daemon.the(" launcher")] * 2


@in_each_mode
def test_a_sandbox_after_a_crash_has_other_addresses(daemon: Daemon) -> None:
    template = daemon.the(" template")
    first = _libc(template)
    _crash_worker(daemon)
    _await_another(daemon, " template", template)
    assert _serve_one(daemon).libc != first


def test_a_worker_that_is_killed_is_no_crash(daemon: Daemon) -> None:
    template = daemon.the(" template")
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        for number in (signal.SIGKILL, signal.SIGTERM):
            worker = daemon.the(" worker")
            os.kill(worker, number)
            guest.getattr(ROOT)
            _await_another(daemon, " worker", worker)
    _serve_one(daemon)
    assert daemon.the(" template") == template


@in_each_mode
def test_a_template_that_dies_is_replaced(daemon: Daemon) -> None:
    for _ in range(3):
        served = _serve_one(daemon)
        assert served.is_only_forked
        _await_another(daemon, " holder", served.pid)
        daemon.the(" pool")  # the next one is there: the template has nothing to do
        template = daemon.the(" template")
        os.kill(template, signal.SIGKILL)
        _await_another(daemon, " template", template)
    assert _serve_one(daemon).is_only_forked
    assert daemon.log.read_text().count("error") == 0


def test_a_template_that_dies_with_a_pool_to_make_is_replaced(daemon: Daemon) -> None:
    """The VMM has connected by then, and waits."""
    template = daemon.the(" template")
    stop(template)
    _serve_one(daemon)  # with the pool that is there
    with Frontend(daemon.socket) as frontend:
        os.kill(template, signal.SIGKILL)
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.getattr(ROOT)
    assert daemon.the(" template") != template
