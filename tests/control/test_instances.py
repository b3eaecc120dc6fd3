# SPDX-License-Identifier: Apache-2.0
"""Processes that pretend to be daemons: an operator who lists or completes names is not harmed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.code.test_completion import completed
from tests.waiting import HANG
from vfsd.control.client import Client
from vfsd.control.instances import Instance, instances
from vfsd.transport.errors import OperatorError

from .conftest import VFSD, run_tool

PRETEND = """
import os, socket, sys
from setproctitle import setproctitle
if sys.argv[2] == "socket":
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("control")
    listening.listen()
else:
    open("control", "w").close()
setproctitle(f"vfsd: {sys.argv[1]} keeper")
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def pretending(folder: Path, name: str, what: str = "socket") -> Iterator[int]:
    """A process with the title of a keeper; returns its pid."""
    argv = [sys.executable, "-c", PRETEND, name, what]
    with subprocess.Popen(
        argv, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.stdin.close()
        process.wait(HANG)


def found(pid: int) -> list[Instance]:
    return [one for one in instances() if one.pid == pid]


@pytest.mark.parametrize("name", ["$(touch touched)", "`touch touched`", "--names", "a b", "x;y"])
def test_a_name_that_a_shell_would_expand_is_not_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PATH", f"{Path(VFSD).parent}:{os.environ['PATH']}")
    with pretending(tmp_path, name) as pid:
        assert [one.name for one in found(pid)] == [name]
        words = run_tool("list", "--names").stdout.splitlines()
        assert name not in words
        assert str(pid) in words
        assert str(pid) in completed("vfsd", "status", str(pid), cwd=tmp_path)
        completed("vfsd", "status", "", cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["control"]


def test_a_name_cannot_control_a_terminal(tmp_path: Path) -> None:
    with pretending(tmp_path, "a\033[2Jb") as pid:
        assert [one.name for one in found(pid)] == ["a\\x1b[2Jb"]
        assert "\033" not in run_tool("list").stdout


def test_a_file_in_the_place_of_the_socket_is_not_opened(tmp_path: Path) -> None:
    with pretending(tmp_path, "vm1", "file") as pid:
        assert found(pid) == []


def test_a_process_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with pretending(tmp_path, "vm1") as pid:
        (instance,) = found(pid)
        with Client(instance, 0.5) as client, pytest.raises(OperatorError, match="not answered"):
            client.status()
