# SPDX-License-Identifier: Apache-2.0
"""The names and user ids by which the daemons of one host differ."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vfsd.supervisor.command_line import parse
from vfsd.supervisor.confinement import OWN_IDS
from vfsd.supervisor.instance import LENGTH_MAX, instance_key, instance_name

from .daemon import Daemon, wait_until

INHERITED = parse(["--fd=5", "--shared-dir=/srv"])


def at(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        return instance_name(parse([f"--socket-path={path}", "--shared-dir=/"]), sock)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        yield sock


def test_a_path_names_the_instance() -> None:
    assert at("/run/vm001.sock") == "vm001"
    assert at("/run/vm002/sock") == "vm002"
    assert at("/a\nb") == "a?b"
    assert len(at(f"/{'x' * 200}")) == LENGTH_MAX


def test_domains_of_libvirt_have_different_names(listener: socket.socket, tmp_path: Path) -> None:
    """libvirt passes no option but --fd, and the sockets of all domains have the same file name."""
    (tmp_path / "domain-1-db").mkdir()
    listener.bind(str(tmp_path / "domain-1-db" / "fs0-fs.sock"))
    assert instance_name(INHERITED, listener) == "domain-1-db/fs0-fs"


def test_a_socket_unit_names_the_instance_by_its_folder(
    listener: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "vm003").mkdir()
    listener.bind(str(tmp_path / "vm003" / "sock"))
    assert instance_name(INHERITED, listener) == "vm003"


def test_an_abstract_address_names_the_instance(listener: socket.socket) -> None:
    listener.bind("\0vfsd-test-abstract")
    assert instance_name(INHERITED, listener) == "vfsd-test-abstract"


# A VMM that starts its daemon itself and passes one end of a socket pair to the daemon.
VMM = """
import socket
channel = socket.socket(fileno=0)
ours, theirs = socket.socketpair()
socket.send_fds(channel, [b"x"], [theirs.fileno()])
channel.recv(1)
"""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["-name", "guest=db\x1b,debug-threads=on"], "db?"),
        (["-name", "web"], "web"),
        (["-name"], "fd5"),
        ([], "fd5"),
    ],
)
def test_a_connection_is_called_after_its_vmm(arguments: list[str], name: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, subprocess.Popen([sys.executable, "-c", VMM, *arguments], stdin=theirs.fileno()):
        theirs.close()
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=fd) as connection:
            assert instance_name(INHERITED, connection) == name
        ours.send(b"x")


def own_id(folder: Path) -> int:
    (folder / "log").unlink(missing_ok=True)
    with Daemon(folder) as daemon:
        return int(daemon.process_group.uids().real)


def test_an_instance_has_the_same_user_id_at_each_start(tmp_path: Path) -> None:
    """journald keeps a file for each user, so a new user id at each start would add files."""
    (tmp_path / "other").mkdir()
    first, again = own_id(tmp_path), own_id(tmp_path)
    assert first == again
    assert first in OWN_IDS
    assert own_id(tmp_path / "other") != first


def test_an_id_that_a_process_has_is_left_to_that_process(tmp_path: Path) -> None:
    first = own_id(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=first) as other:
        wait_until(lambda: psutil.Process(other.pid).uids().real == first)
        assert own_id(tmp_path) == first + 1
    assert own_id(tmp_path) == first


def test_keys_are_stable_and_differ(listener: socket.socket) -> None:
    first, again, other = (
        instance_key(parse([f"--socket-path=/run/{path}", "--shared-dir=/"]), listener)
        for path in ("a/sock", "a/sock", "b/a.sock")
    )
    assert first == again != other
