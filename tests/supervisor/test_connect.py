# SPDX-License-Identifier: Apache-2.0
"""--connect: the VMM listens, and the daemon connects to it."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import HANG, LOADED
from vfsd.transport.vhost_user import Number

from .daemon import Daemon, wait_until
from .frontend import Frontend

QUEUES = 2


def start(tmp_path: Path, *options: str) -> Daemon:
    return Daemon(tmp_path, f"--connect={tmp_path}/vm001.sock", *options, pass_fds=())


@contextmanager
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a VMM, without the files of an earlier VMM."""
    path = tmp_path / "vm001.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(1)
        sock.settimeout(HANG)
        yield sock


@contextmanager
def vmm(listener: socket.socket) -> Iterator[Frontend]:
    """A VMM that the daemon has connected to. The vrings of the VMM run."""
    frontend = Frontend(listener.accept()[0])
    try:
        frontend.realize(QUEUES)
        frontend.driver_ok(QUEUES)
        yield frontend
    finally:
        frontend.close()


def test_a_vmm_that_comes_late_is_served(tmp_path: Path) -> None:
    """The daemon says that it waits, tries again, ends with its VMM, and leaves the VMM's files."""
    with start(tmp_path) as daemon:
        wait_until(lambda: "the VMM does not listen" in daemon.text())
        wait_until(lambda: "trying again in 1 s" in daemon.text())
        lines = daemon.text().count("trying again")
        with listening(tmp_path) as listener, vmm(listener) as frontend:
            assert frontend.set_mem_table() == 0
        assert daemon.end() == 0
        assert daemon.text().count("trying again") == lines, "only a pause that grows is logged"
    assert {path.name for path in tmp_path.iterdir()} == {"vm001.sock", "share", "log", "run"}


def test_the_next_vmm_is_connected_to(tmp_path: Path) -> None:
    with start(tmp_path, "--keep-listening") as daemon:
        for _ in range(3):  # each with another socket of that name
            with listening(tmp_path) as listener, vmm(listener) as frontend:
                assert frontend.set_mem_table() == 0
        assert daemon.process.poll() is None


def test_a_vmm_that_hangs_up_without_a_word_is_connected_to_again(tmp_path: Path) -> None:
    """After a pause each time: a VMM that does nothing else costs no CPU."""
    with start(tmp_path) as daemon, listening(tmp_path) as listener:
        begun = time.monotonic()
        for _ in range(6):
            listener.accept()[0].close()
        with vmm(listener):
            assert time.monotonic() - begun > 0.1 + 0.2 + 0.4 + 0.8 + 1.0
        assert daemon.end() == 0
        assert "the VMM closed the connection without a message" in daemon.text()


def test_supervisors_die_before_and_during_the_connection(tmp_path: Path) -> None:
    with start(tmp_path) as daemon:
        wait_until(lambda: "the VMM does not listen" in daemon.text())
        daemon.kill_supervisor()
        with listening(tmp_path) as listener, vmm(listener) as frontend:
            for _ in range(3):
                daemon.kill_supervisor()
                assert frontend.set_mem_table() == 0
        assert daemon.end() == 0


def test_a_supervisor_dies_when_it_has_connected(tmp_path: Path) -> None:
    """The connection has no message yet."""
    with start(tmp_path) as daemon, listening(tmp_path) as listener:
        frontend = Frontend(listener.accept()[0])
        wait_until(lambda: daemon.find("supervisor"))
        daemon.kill_supervisor()
        frontend.ask(Number.GET_FEATURES)
        frontend.close()
        assert daemon.end() == 0


def test_a_signal_ends_a_daemon_that_waits_for_its_vmm(tmp_path: Path) -> None:
    with start(tmp_path) as daemon:
        wait_until(lambda: "the VMM does not listen" in daemon.text())
        begun = time.monotonic()
        daemon.process.terminate()
        assert daemon.end() == 0
        assert time.monotonic() - begun < LOADED


@pytest.mark.parametrize("path", ["missing/vm.sock", "a file", "a link"])
def test_a_path_that_is_no_socket_is_tried_again(tmp_path: Path, path: str) -> None:
    """Through a link, a VMM could have the launcher connect to any socket of the host."""
    (tmp_path / "a file").touch()
    (tmp_path / "a link").symlink_to("vm001.sock")
    with (
        listening(tmp_path),
        Daemon(tmp_path, f"--connect={tmp_path}/{path}", pass_fds=()) as daemon,
    ):
        wait_until(lambda: "the VMM does not listen" in daemon.text())
        assert daemon.process.poll() is None
