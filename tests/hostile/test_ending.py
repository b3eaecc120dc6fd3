# SPDX-License-Identifier: Apache-2.0
"""The daemon ends with its VMM, or by a signal, and never leaves anything behind."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.sandbox_modes import SandboxMode
from tests.waiting import HANG, LOADED

from .daemon import Daemon, wait_until
from .driver import VERSION, Frontend
from .file_systems import file_system
from .fuse import MKDIR_IN, ROOT, Guest, Op, names


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
        assert daemon.process.wait(HANG) == 0
        gone, alive = psutil.wait_procs(family, HANG)
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
        assert daemon.process.wait(HANG) == 0
        assert time.monotonic() - start < 1.5 * LOADED
        assert not psutil.wait_procs(family, HANG)[1]
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
            daemon.process.wait(HANG)
            guest.lookup(ROOT, b".")
        assert not psutil.wait_procs(family, HANG)[1]


@pytest.mark.sandbox_modes("chroot", "none")
def test_a_worker_that_is_being_created_does_not_outlive_its_pool(
    sandbox_mode: SandboxMode,
) -> None:
    """The pool is killed while it replaces a worker. In a pid namespace the new worker ends with
    the pool; without a pid namespace only the supervisor ends the worker."""
    with Daemon("--keep-listening", mode=sandbox_mode) as daemon:
        for i in range(8):
            with Frontend(daemon.socket) as frontend:
                Guest(frontend.setup(8)).init()
                for pid in daemon.titled("worker"):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.01 * i)
        wait_until(lambda: not daemon.titled("worker"), 10, "no worker is left")


def test_killing_keeper_and_supervisor_leaves_no_file_behind() -> None:
    with Daemon() as daemon:
        family = daemon.processes()
        wait_until(lambda: bool(daemon.titled("pool")), 10, "the daemon waits for a VMM")
        runtime = Path(f"/proc/{daemon.the('supervisor')}/cwd").readlink()
        assert runtime.exists()
        for pid in [daemon.process.pid, *daemon.titled("supervisor")]:
            os.kill(pid, signal.SIGKILL)
        daemon.process.wait(HANG)
        assert not psutil.wait_procs(family, HANG)[1]
        wait_until(lambda: not runtime.exists(), 5, "the runtime folder is removed")
        wait_until(lambda: not Path(daemon.socket).exists(), 5, "the socket file is removed")


def test_without_its_launcher_a_share_lives_on_until_its_vmm_goes() -> None:
    with Daemon("--keep-listening") as daemon:
        with Frontend(daemon.socket) as frontend:
            guest = Guest(frontend.setup(2))
            guest.init()
            daemon.lose_launcher()
            wait_until(lambda: "no deputy was left" in daemon.log.read_text(), 5, "a loud line")
            os.kill(daemon.the("supervisor"), signal.SIGKILL)
            os.kill(daemon.the("worker 1"), signal.SIGKILL)
            for queue in (1, 2):
                guest.ask(Op.GETATTR, ROOT, bytes(16), room=104, queue=queue)
            assert daemon.log.read_text().count("the launcher died") == 1
        assert daemon.process.wait(HANG) == 1
        assert "cannot start a pool of workers: the launcher is gone" in daemon.log.read_text()


@pytest.fixture
def freezable(tmp_path: Path, requires: Callable[[str], str]) -> Iterator[Path]:
    """An ext4 file system for this test, which is thawed at the end."""
    requires("fsfreeze")
    with file_system("ext4", tmp_path) as folder:
        yield folder
        subprocess.run(["fsfreeze", "-u", folder], check=False, capture_output=True)


def test_a_worker_that_waits_for_a_frozen_file_system_is_left_behind(freezable: Path) -> None:
    with Daemon(share=freezable) as daemon:
        frontend = Frontend(daemon.socket)
        guest = Guest(frontend.setup(1))
        guest.init()
        worker = psutil.Process(daemon.the("worker 0"))
        subprocess.run(["fsfreeze", "-f", freezable], check=True)
        guest.submit(Op.MKDIR, ROOT, MKDIR_IN.pack(0o755, 0) + names(b"new"), room=128)
        wait_until(lambda: worker.status() == psutil.STATUS_DISK_SLEEP, 10, "the worker waits")
        keeper = psutil.Process(daemon.process.pid)
        before = sum(keeper.cpu_times()[:2])
        daemon.process.terminate()
        wait_until(lambda: "still there" in daemon.log.read_text(), 10, "a line names it")
        assert f"{worker.pid} (" in daemon.log.read_text().splitlines()[-1]
        assert "state D" in daemon.log.read_text().splitlines()[-1]
        assert sum(keeper.cpu_times()[:2]) - before < 0.5  # of the 3 seconds that it may take
        assert daemon.process.wait(HANG) == 0
        assert "and left behind" in daemon.log.read_text()
        assert not Path(daemon.socket).exists()
        subprocess.run(["fsfreeze", "-u", freezable], check=True)
        assert not psutil.wait_procs([worker], 5)[1]
        frontend.close()
