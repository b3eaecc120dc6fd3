# SPDX-License-Identifier: Apache-2.0
"""The unit file, and the messages of the service to systemd."""

import os
import re
import shlex
import signal
import socket
import struct
from pathlib import Path

import pytest

from tests.waiting import HANG
from vfsd.supervisor.command_line import parse
from vfsd.supervisor.systemd import ServiceManager

from .daemon import ROOT, Daemon, has_ended, wait_until

UNIT = ROOT / "contrib" / "systemd" / "virtiofsd@.service"


def test_systemd_is_notified_when_a_vmm_can_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper sends the message, because systemd accepts it only from the main process
    (NotifyAccess=main)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(HANG)
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with Daemon(tmp_path) as daemon:
            said, ((_, _, sender),), _, _ = manager.recvmsg(100, 100)
            assert said == b"READY=1"
            assert struct.unpack("=iII", sender)[0] == daemon.process_group.pid
            assert daemon.path.exists()


def test_systemd_is_notified_again_by_a_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor may have died before it had reported that the service is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(HANG)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with Daemon(tmp_path) as daemon:
            assert manager.recv(100) == b"READY=1"
            daemon.kill_supervisor()
            assert manager.recv(100) == b"READY=1"


def test_systemd_is_notified_of_the_keeper_that_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit has NotifyAccess=all, since the sender is not the main process yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(HANG)
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with Daemon(tmp_path, "--keep-listening") as daemon:
            assert manager.recv(100) == b"READY=1"
            supervisor = daemon.supervisor()
            daemon.process.kill()
            said, ((_, _, sender),), _, _ = manager.recvmsg(100, 100)
            keeper = struct.unpack("=iII", sender)[0]
            assert said == b"MAINPID=%d" % keeper
            assert manager.recv(100) == b"READY=1"
            assert [child.pid for child in supervisor.children()] == [keeper]
            os.kill(keeper, signal.SIGTERM)
            wait_until(lambda: has_ended(supervisor))


def notify() -> None:
    manager = ServiceManager.of_environment()
    manager.report_ready()
    manager.close()


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(HANG)
        manager.bind("\0vfsd-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@vfsd-test-notify")
        notify()
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all"])
def test_it_does_not_matter_if_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify()


def test_the_unit_starts_a_daemon_that_we_understand(tmp_path: Path) -> None:
    text = (
        UNIT.read_text()
        .replace("%i", "vm001")
        .replace("%t", "/run")
        .replace("/etc/vfsd", str(tmp_path))
    )
    command = re.search(r"^ExecStart=virtiofsd (.*)$", text, re.MULTILINE)
    assert command
    example = re.findall(r"^#   (.*)$", text, re.MULTILINE)
    (tmp_path / "vm001.toml").write_text("\n".join(example))
    options = parse(shlex.split(command[1]))
    assert options.socket_path == "/run/vfsd/vm001/sock"
    assert options.shared_dir == "/srv/vm001"
    assert options.keep_listening
    assert (options.cache, options.xattr, options.socket_group) == ("always", True, "kvm")
