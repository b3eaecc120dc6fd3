# SPDX-License-Identifier: Apache-2.0
"""After the death of each process of the control plane the next command works, and what no operator
looks at costs nothing."""

import os
import signal

import psutil
import pytest

from tests.hostile.fuse import ROOT
from tests.hostile.test_idle import assert_asleep
from tests.waiting import wait_until

from .conftest import Operated


def control(operated: Operated) -> list[int]:
    return operated.daemon.titled("socket control")


@pytest.mark.parametrize("role", ["control", "supervisor", "keeper", "pool", "holder"])
def test_the_next_command_works(operated: Operated, role: str) -> None:
    with operated.client() as client:
        client.status()
        victim = psutil.Process(operated.daemon.the(f"socket {role}"))
        path = operated.instance.path
        victim.kill()
        wait_until(lambda: not psutil.pid_exists(victim.pid) or _is_zombie(victim), 20, "it died")
        operated.guest.getattr(ROOT)
        assert client.status().guest
        assert client.counters().queues
    assert os.path.exists(path)  # noqa: PTH110 - one call


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_deaths_are_counted(operated: Operated) -> None:
    with operated.client() as client:
        before = client.status().restarts
        os.kill(operated.daemon.the("socket supervisor"), signal.SIGKILL)
        wait_until(lambda: client.status().restarts.supervisor == before.supervisor + 1, 20)
        os.kill(operated.daemon.the("socket holder"), signal.SIGKILL)
        wait_until(lambda: client.status().restarts.sandbox == before.sandbox + 1, 20)


def test_the_control_process_ends_when_no_client_is_left(operated: Operated) -> None:
    assert not control(operated)
    with operated.client() as client:
        client.status()
        assert len(control(operated)) == 1
    wait_until(lambda: not control(operated), 20, "the control process ends")
    assert_asleep(operated.daemon)
    with operated.client() as client:
        client.status()


def test_the_control_process_ends_with_its_supervisor(operated: Operated) -> None:
    with operated.client() as client:
        client.status()
        (first,) = control(operated)
        os.kill(operated.daemon.the("socket supervisor"), signal.SIGKILL)
        wait_until(lambda: first not in control(operated), 20, "it ends")


def test_no_fd_is_left_by_clients(operated: Operated) -> None:
    supervisor = psutil.Process(operated.daemon.the("socket supervisor"))
    before = supervisor.num_fds()
    for _ in range(2):
        with operated.client() as client:
            client.status()
        wait_until(lambda: not control(operated), 20, "the control process ends")
        wait_until(lambda: supervisor.num_fds() == before, 20, "its fds are closed")
