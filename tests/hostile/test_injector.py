# SPDX-License-Identifier: Apache-2.0
"""The injector itself: real calls, true results, and a process that notices nothing."""

import errno
import os
import signal

import pytest

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Guest
from .injector import AT_FDCWD, Injector, Killed, error_name


def worker_of(daemon: Daemon) -> int:
    return daemon.the("worker 0")


@pytest.mark.usefixtures("guest")
def test_results_are_those_of_the_process(daemon: Daemon) -> None:
    (daemon.share / "file").write_bytes(b"content")
    with Injector(worker_of(daemon)) as worker:
        fd = worker.call("openat", AT_FDCWD, "/file", os.O_RDONLY)
        assert worker.fds()[fd] == "/file"
        content = bytearray(16)
        assert worker.call("read", fd, content, 16) == 7
        assert content == b"content" + bytes(9)
        assert worker.call("close", fd) == 0
        assert worker.call("close", fd) == -errno.EBADF
        assert error_name(worker.call("openat", AT_FDCWD, "/none", os.O_RDONLY)) == "ENOENT"
        assert worker.call("geteuid") == 0
        assert worker.read(worker.address(b"bytes"), 5) == b"bytes"
    (daemon.share / "file").unlink()


def test_the_process_continues(daemon: Daemon, guest: Guest) -> None:
    pid = worker_of(daemon)
    for _ in range(20):
        with Injector(pid) as worker:
            assert worker.call("geteuid") == 0
        assert guest.getattr(ROOT).ino == daemon.share.stat().st_ino
    assert worker_of(daemon) == pid


def test_a_call_outside_the_filter_is_the_last_one() -> None:
    with Daemon() as daemon, Frontend(daemon.socket) as frontend:
        Guest(frontend.setup(1)).init()
        pid = worker_of(daemon)
        with Injector(pid) as worker, pytest.raises(Killed) as killed:
            worker.call("execve", "/bin/true", None, None)
        assert killed.value.signal == signal.SIGSYS
        wait_until(lambda: pid not in daemon.pids(), 5, "the pool buries the worker")
