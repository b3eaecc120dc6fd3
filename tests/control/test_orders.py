# SPDX-License-Identifier: Apache-2.0
"""What an operator changes in a running daemon."""

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.hostile.fuse import ROOT
from tests.waiting import HANG, wait_until
from vfsd.control.instances import Instance, instances
from vfsd.transport.errors import OperatorError

from .conftest import ENDED_BY_SIGINT, VFSD, Operated, run_tool


def restarted(operated: Operated, slot: int, restart: Callable[[], object]) -> None:
    """Have a worker replaced, and wait until the next worker serves."""
    before = operated.daemon.the(f"socket worker {slot}")
    restart()
    wait_until(
        lambda: operated.daemon.titled(f"socket worker {slot}") not in ([], [before]),
        20,
        "a worker",
    )
    operated.daemon.the(f"socket worker {slot}")


def test_a_worker_is_restarted_and_its_guest_served(operated: Operated) -> None:
    restarted(operated, 0, lambda: run_tool("worker", "restart", operated.name, "0"))
    operated.guest.getattr(ROOT)
    with operated.client() as client:
        wait_until(lambda: client.status().workers[0].starts == 2, 20, "the start is counted")
        status = client.status()
    assert status.workers[1].starts == 1
    assert "worker 0 died (signal 9); created again" in status.warnings[-1].text


@pytest.mark.parametrize("slot", [-1, 2, 64, 1 << 40])
def test_there_are_no_other_workers(operated: Operated, slot: int) -> None:
    with operated.client() as client, pytest.raises(OperatorError, match="no such worker"):
        client.restart_worker(slot)
    operated.guest.getattr(ROOT)


def test_the_log_level_reaches_each_process_and_outlives_deaths(operated: Operated) -> None:
    daemon, log = operated.daemon, operated.daemon.log
    assert "debug: " not in log.read_text()
    run_tool("set", operated.name, "log-level", "debug")

    def lines() -> int:
        return log.read_text().count("worker 0: debug: serves")

    kill = daemon.the("socket worker 0")
    os.kill(kill, signal.SIGKILL)
    wait_until(lambda: lines() == 1, 20, "the next worker logs at this level")
    victim = daemon.the("socket supervisor")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: daemon.titled("socket supervisor") not in ([], [victim]), 20, "a supervisor")
    with operated.client() as client:
        assert client.status().settings.log_level == "debug"
        os.kill(daemon.the("socket worker 0"), signal.SIGKILL)
        wait_until(lambda: lines() == 2, 20, "the level is still set")
        os.kill(daemon.the("socket holder"), signal.SIGKILL)
        wait_until(lambda: lines() == 3, 20, "the next sandbox has the level as well")
        client.set_log_level("off")
        size = log.stat().st_size
        os.kill(daemon.the("socket worker 0"), signal.SIGKILL)
        wait_until(lambda: client.status().workers[0].starts == 2, 20, "the next worker")
    assert log.stat().st_size == size


def test_the_level_of_a_worker_changes_at_once(operated: Operated) -> None:
    """A second INIT of a guest is logged at level debug, by the worker."""
    run_tool("set", operated.name, "log-level", "debug")
    repeated = "worker 0: debug: the guest has mounted the share again"

    def is_logged() -> bool:
        operated.guest.init()
        return repeated in operated.daemon.log.read_text()

    wait_until(is_logged, 20, "the worker logs at level debug")


def test_a_level_that_is_not_known(operated: Operated) -> None:
    with operated.client() as client, pytest.raises(OperatorError, match="must be one of"):
        client.set_log_level("loud")
    assert "invalid choice" in run_tool("set", operated.name, "log-level", "loud", status=2).stderr


def test_stop_ends_the_daemon_and_returns_when_it_has_ended(operated: Operated) -> None:
    run_tool("stop", operated.name)
    assert operated.daemon.process.wait(HANG) == 0
    assert operated.daemon.process.pid not in {one.pid for one in instances()}


def test_stop_works_after_the_keeper_was_replaced(operated: Operated) -> None:
    daemon, first = operated.daemon, operated.instance
    family = daemon.processes()
    daemon.process.kill()
    found: list[Instance] = []

    def is_replaced() -> bool:
        found[:] = [one for one in instances() if one.path == first.path and one.pid != first.pid]
        return bool(found) and "keeper" in title(found[0].pid)

    wait_until(is_replaced, 20, "the next keeper")
    operated.guest.getattr(ROOT)
    run_tool("stop", str(found[0].pid))
    assert not psutil.wait_procs(family, HANG)[1]


def title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def test_the_log_is_followed(operated: Operated) -> None:
    with subprocess.Popen(
        [*ENDED_BY_SIGINT, VFSD, "logs", "-f", operated.name], stdout=subprocess.PIPE, text=True
    ) as tool:
        assert tool.stdout
        try:
            seen: list[str] = []
            while not any("mounted the share" in line for line in seen):
                seen.append(tool.stdout.readline())
            run_tool("set", operated.name, "log-level", "info")
            while not any("has set the log level" in line for line in seen):
                run_tool("set", operated.name, "log-level", "info")
                seen.append(tool.stdout.readline())
        finally:
            tool.send_signal(signal.SIGINT)
            assert tool.wait(HANG) == 0
