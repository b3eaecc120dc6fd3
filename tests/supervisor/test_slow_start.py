# SPDX-License-Identifier: Apache-2.0
"""A pool that takes long to start, for example on a tenth of a CPU: an error is reported only if
the pool dies."""

import signal
from pathlib import Path

import psutil
import pytest

from vfsd.transport.vhost_user import Number

from .daemon import Daemon, has_ended, wait_until
from .frontend import Frontend

QUEUES = 2
TITLE = "fake pool"
SLOW = ("--pool=slow_pool.py", "--set=pool_client.SLOW_SECONDS=0.2")
LINE = "the start of the pool: still waiting after"


def start(folder: Path, *options: str) -> Daemon:
    """A daemon whose pool is not ready before `share/slow` is removed. The daemon has already
    logged that the pool is slow."""
    (folder / "share").mkdir()
    (folder / "share" / "slow").touch()
    daemon = Daemon(folder, *SLOW, *options, cwd=folder)
    wait_until(lambda: LINE in daemon.text(), what="a line")
    return daemon


def started(daemon: Daemon) -> list[psutil.Process]:
    """The pool that is starting: a child of the launcher, as the template is."""
    launcher = daemon.find("launcher")
    children = launcher.children() if launcher else []
    return [child for child in children if TITLE in " ".join(child.cmdline())]


def test_a_vmm_is_served_once_the_pool_has_started(tmp_path: Path) -> None:
    with start(tmp_path) as daemon:
        frontend = Frontend(daemon.path)
        wait_until(lambda: daemon.text().count(LINE) >= 2, what="the next line")
        (daemon.share / "slow").unlink()
        frontend.realize(QUEUES)
        frontend.driver_ok(QUEUES)
        assert frontend.ack(Number.SET_OWNER) == 0
        assert "the start of the pool: done after" in daemon.text()
        frontend.close()
        assert daemon.end() == 0


def test_a_pool_that_dies_while_it_starts_is_an_error(tmp_path: Path) -> None:
    with start(tmp_path) as daemon:
        wait_until(lambda: started(daemon), what="the launcher has a pool")
        started(daemon)[0].kill()
        assert daemon.end() == 1
        assert "error: the pool of workers ended before it was ready" in daemon.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(tmp_path: Path, number: int) -> None:
    with start(tmp_path) as daemon:
        family = daemon.process_group.children(recursive=True)
        daemon.process.send_signal(number)
        assert daemon.end() == 0
        wait_until(lambda: all(map(has_ended, family)), what="all processes have ended")
