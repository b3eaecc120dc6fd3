# SPDX-License-Identifier: Apache-2.0
"""The processes that are killed with a pool: its own, and no process that gets its pid later."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.waiting import HANG, wait_until
from vfsd.supervisor.descendants import descendants, process_of
from vfsd.supervisor.device import DEVICE_BYTES
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.launcher_record import LauncherRecord
from vfsd.supervisor.log_collector import LogCollector, stderr_sink
from vfsd.supervisor.patience import Patience
from vfsd.supervisor.pool_client import PoolClient
from vfsd.supervisor.segments import Segments
from vfsd.supervisor.stderr_relay import StderrRelay
from vfsd.transport.fd_channel import FdChannel
from vfsd.transport.shared_memory import create_segment

# A process with one child. It prints the child's pid, and both processes wait for the end of stdin.
PARENT = """
import os, sys
child = os.fork()
if child:
    print(child, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a child, and the child's pid."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield process, int(process.stdout.readline())


def _pidfd_of_somebody_dead() -> int:
    dead = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(dead.pid)
    dead.wait()
    return pidfd


@pytest.mark.parametrize("is_pool_dead", [False, True])
def test_only_a_living_pools_workers_are_killed(
    parent: tuple[subprocess.Popen[str], int], is_pool_dead: bool
) -> None:
    """After the keeper has reaped a dead pool, its pid may belong to any process."""
    process, child = parent
    child_fd = os.pidfd_open(child)
    ours, theirs = FdChannel.pair()
    loop = EventLoop()
    launcher = Launcher(0, -1, LauncherRecord())  # the test needs no launcher
    log = LogCollector("test", "off", stderr_sink)
    relay = StderrRelay(loop, log, os.open(os.devnull, os.O_RDONLY))
    device = create_segment("vfsd-device", DEVICE_BYTES)
    patience = Patience(loop, log)
    pool = PoolClient(loop, launcher, ours, Segments.create(device, 1 << 20), [], relay, patience)
    pool.pid = process.pid
    pool.watch(_pidfd_of_somebody_dead() if is_pool_dead else os.pidfd_open(process.pid))
    pool.kill()
    theirs.close()
    os.close(device)
    try:
        # If the pool lives, the pool and its worker are killed, though their stdin is still open.
        assert (process.poll() is None) == is_pool_dead or process.wait(HANG) == -9
        is_child_there = child in [p.pid for p in descendants(os.getpid()) if p.state != "Z"]
        assert is_child_there == is_pool_dead
    finally:
        os.close(child_fd)


def test_a_process_that_has_the_pid_of_another_is_not_killed(
    parent: tuple[subprocess.Popen[str], int],
) -> None:
    process, child = parent
    (found,) = descendants(process.pid)
    assert found.pid == child
    replace(found, started=found.started - 1).kill()
    assert [p.pid for p in descendants(process.pid) if p.state != "Z"] == [child]
    found.kill()
    assert process.poll() is None


def test_the_name_of_a_process_is_made_printable() -> None:
    """Each process chooses its own name, also a worker that was taken over."""
    name = b"\x1b[2J) Z\r\xff"
    command = [b"sh", b"-c", b'printf %s "$0" >/proc/$$/comm; read line', name]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        comm = Path(f"/proc/{process.pid}/comm")
        wait_until(lambda: comm.read_bytes() == name + b"\n", 10, "it has its name")
        text = str(process_of(process.pid))
        process.communicate()
    assert text.startswith(f"{process.pid} (\\x1b[2J) Z")
    assert text.isprintable()
