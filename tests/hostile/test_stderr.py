# SPDX-License-Identifier: Apache-2.0
"""A worker that was taken over can write a few lines to the log by its standard fds, no more."""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode, in_every_mode

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Guest
from .injector import Injector, fds
from .race_checks import FD_FOLDER, OOM_SCORE

pytestmark = in_each_mode

SOURCE = "stderr of the pool"
LOG_BYTES = 32 << 10  # more than the budget for lines that come at once


@pytest.fixture
def daemon(sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    with Daemon(mode=sandbox_mode) as running:
        yield running


@pytest.fixture
def guest(daemon: Daemon) -> Iterator[Guest]:
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        yield guest


def worker_of(daemon: Daemon) -> int:
    return daemon.the("worker 0")


def relayed(daemon: Daemon) -> list[str]:
    return [line for line in daemon.log.read_text().splitlines() if SOURCE in line]


@pytest.mark.usefixtures("guest")
def test_lines_are_logged_with_their_source_and_escaped(daemon: Daemon) -> None:
    with Injector(worker_of(daemon)) as worker:
        said = b"\x1b[31mred\xff\nsecond\n" + b"x" * 1200 + b"\n"
        assert worker.call("write", 2, said, len(said)) == len(said)
    wait_until(lambda: len(relayed(daemon)) == 5, 5, "the lines are logged")
    assert relayed(daemon)[0].endswith(rf"{SOURCE}: warning: \x1b[31mred\xff")
    assert relayed(daemon)[1].endswith("second")
    assert relayed(daemon)[2].endswith("x" * 512)
    assert "\x1b" not in daemon.log.read_text()


@in_every_mode
def test_a_flood_is_cut_short_and_stops_nobody(daemon: Daemon, guest: Guest) -> None:
    with Injector(worker_of(daemon)) as worker:
        line = b"flood " * 80 + b"\n"
        results = {worker.call("write", 2, line, len(line)) for _ in range(2000)}
    assert results == {len(line), -errno.EAGAIN}
    assert guest.getattr(ROOT).ino == daemon.share.stat().st_ino
    assert daemon.log.stat().st_size < LOG_BYTES
    assert len(relayed(daemon)) <= 30


def test_the_pipe_outlives_a_supervisor(daemon: Daemon, guest: Guest) -> None:
    supervisor = daemon.the("supervisor")
    pid = worker_of(daemon)
    with Injector(pid) as worker:
        os.kill(supervisor, signal.SIGKILL)
        for _ in range(50):
            assert worker.call("write", 2, b"alone\n", 6) == 6
    wait_until(lambda: "took over from a supervisor" in daemon.log.read_text(), 10, "a successor")
    wait_until(lambda: any(line.endswith("alone") for line in relayed(daemon)), 10, "the lines")
    assert guest.getattr(ROOT).ino == daemon.share.stat().st_ino
    assert worker_of(daemon) == pid


@pytest.mark.usefixtures("guest")
def test_the_last_words_of_a_pool_are_logged(daemon: Daemon) -> None:
    pool = daemon.the("pool")
    with Injector(pool) as taken_over:
        taken_over.call("write", 2, b"*** stack smashing detected ***\n", 32)
        os.kill(pool, signal.SIGKILL)
    wait_until(lambda: bool(relayed(daemon)), 30, "the line")
    assert relayed(daemon)[0].endswith("*** stack smashing detected ***")


@pytest.mark.usefixtures("guest")
def test_no_fd_of_the_sandbox_refers_to_a_file_of_the_host(daemon: Daemon) -> None:
    """An fd is enough for open_by_handle_at() to reach its whole file system. The log is a file of
    the host here."""
    for pid in [*daemon.titled("pool"), *daemon.titled("worker")]:
        for fd, what in fds(pid).items():
            if not what.startswith(("anon_inode:", "pipe:", "socket:", "/memfd:")):
                assert is_of_sandbox(daemon, pid, fd, what), (fd, what)
        assert [fds(pid)[fd].split(":")[0] for fd in range(3)] == ["anon_inode"] * 2 + ["pipe"]


def is_of_sandbox(daemon: Daemon, pid: int, fd: int, what: str) -> bool:
    """Is this file the shared directory, or a file of the sandbox's own /proc? The holder has its
    oom_score_adj open, and /proc has no file handles."""
    number = Path(f"/proc/{pid}/fd/{fd}").stat().st_ino
    is_proc = what == "/" and number == 1
    is_own = bool(FD_FOLDER.fullmatch(what) or OOM_SCORE.fullmatch(what))
    return is_proc or is_own or number == daemon.share.stat().st_ino
