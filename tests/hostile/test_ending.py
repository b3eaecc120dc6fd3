# SPDX-License-Identifier: Apache-2.0
"""How the daemon ends: with its VMM, or by a signal; never with anything left behind."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from .daemon import Daemon, wait_until
from .driver import VERSION, Frontend
from .fuse import ROOT, Guest, Op


@pytest.mark.parametrize("goes", ["in order", "in the middle of a message", "in use"])
def test_without_keep_listening_it_ends_with_its_vmm(goes: str) -> None:
    with Daemon() as daemon:
        with Frontend(daemon.socket) as frontend:
            guest = Guest(frontend.setup(2))
            guest.init()
            family = daemon.processes()
            if goes == "in the middle of a message":
                frontend.send_raw(VERSION.to_bytes(4, "little"))
            elif goes == "in use":
                for _ in range(20):
                    guest.submit(Op.GETATTR, ROOT, bytes(16), room=104)
        assert daemon.process.wait(5) == 0
        gone, alive = psutil.wait_procs(family, 1)
        assert not alive, gone
        assert not Path(daemon.socket).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("connected", [False, True])
def test_a_signal_ends_everything_within_a_second(number: int, connected: bool) -> None:
    with Daemon("--keep-listening") as daemon:
        frontend = None
        if connected:
            frontend = Frontend(daemon.socket).setup(3)
            Guest(frontend).init()
        family = daemon.processes()
        start = time.monotonic()
        daemon.process.send_signal(number)
        assert daemon.process.wait(5) == 0
        assert time.monotonic() - start < 1.5
        assert not psutil.wait_procs(family, 1)[1]
        assert not Path(daemon.socket).exists()
        if frontend:
            frontend.close()


def test_killing_the_keeper_leaves_nobody_once_the_vmm_goes() -> None:
    with Daemon() as daemon:
        with Frontend(daemon.socket) as frontend:
            guest = Guest(frontend.setup(1))
            guest.init()
            family = daemon.processes()
            daemon.process.kill()
            daemon.process.wait(5)
            guest.lookup(ROOT, b".")
        assert not psutil.wait_procs(family, 5)[1]


@pytest.mark.parametrize("sandbox", ["chroot", "none"])
def test_a_worker_that_is_being_created_does_not_outlive_its_pool(sandbox: str) -> None:
    """The pool is killed while it replaces a worker. In a pid namespace that worker goes with it;
    here nobody but the supervisor sees to that."""
    with Daemon("--keep-listening", f"--sandbox={sandbox}") as daemon:
        for i in range(8):
            with Frontend(daemon.socket) as frontend:
                Guest(frontend.setup(8)).init()
                for pid in daemon.titled("worker"):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.01 * i)
        wait_until(lambda: not daemon.titled("worker"), 10, "no worker is left")
