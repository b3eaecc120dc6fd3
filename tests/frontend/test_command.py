# SPDX-License-Identifier: Apache-2.0
"""An operator's mistakes with `vfsd mount`: each is reported in one line that says what to do."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import HANG
from vfsd.transport.vhost_user import Number

from .backend import Backend

VFSD = str(Path(sys.executable).parent / "vfsd")


def vfsd(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, VFSD, *arguments], capture_output=True, text=True, timeout=HANG, check=False
    )


def complaint(*arguments: str, status: int = 1, prefix: tuple[str, ...] = ()) -> str:
    """The one line that vfsd prints before it exits with `status`."""
    done = vfsd(*arguments, prefix=prefix)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("vfsd: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("vfsd: ").rstrip("\n")


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "mnt").mkdir()
    return str(tmp_path / "mnt")


def test_help_and_version() -> None:
    done = vfsd("--help")
    assert done.returncode == 0
    assert "mount a virtio-fs back-end" in done.stdout
    assert vfsd("mount", "--help").stdout.startswith("usage: vfsd mount (SOCKET | --source DIR)")
    assert vfsd("--version").stdout.startswith("vfsd ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["mourn"], "invalid choice: 'mourn'"),
        (["mount"], "mount takes SOCKET and MOUNTPOINT"),
        (["mount", "one"], "mount takes SOCKET and MOUNTPOINT"),
        (["mount", "a", "b", "c"], "mount takes SOCKET and MOUNTPOINT"),
        (["mount", "--source", "/tmp"], "mount takes MOUNTPOINT"),
        (["mount", "a", "b", "--queues", "0"], "--queues: give a number from 1 to 64"),
        (["mount", "a", "b", "--queues", "x"], "invalid int value"),
        (["mount", "a", "b", "--queue-size", "100"], "--queue-size: give a power of 2 from 8"),
        (["mount", "a", "b", "--poll-us", "-1"], "--poll-us"),
        (["mount", "a", "b", "--poll-us", "10001"], "give auto or a number from 0 to 10000"),
        (["mount", "a", "b", "--poll-us", "often"], "give auto or a number from 0 to 10000"),
        (["mount", "a", "b", "--frob"], "--frob"),
        (["mount", "a", "b", "--", "--readonly"], "for the virtiofsd that --source starts"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], words: str) -> None:
    assert words in complaint(*arguments, status=2)


def test_mount_points_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    missing = tmp_path / "missing"
    assert complaint("mount", "s", str(missing)) == (
        f"mount point '{missing}' does not exist; create it first"
    )
    assert complaint("mount", "s", str(file)) == f"mount point '{file}' is not a directory"
    assert "is a mount point already" in complaint("mount", "s", "/proc")


def test_sockets_that_cannot_be(tmp_path: Path, target: str) -> None:
    missing = tmp_path / "missing"
    assert f"'{missing}' does not exist" in complaint("mount", str(missing), target)
    deaf = tmp_path / "deaf"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(deaf))
    assert f"no process listens on '{deaf}'" in complaint("mount", str(deaf), target)
    assert "does not exist" in complaint("mount", "x" * 200, target)  # longer than an address


def test_a_source_that_cannot_be(tmp_path: Path, target: str) -> None:
    missing = str(tmp_path / "missing")
    words = f"--source: '{missing}' is not a directory"
    assert complaint("mount", "--source", missing, target) == words


def test_a_daemon_that_does_not_start(tmp_path: Path, target: str) -> None:
    done = vfsd("mount", "--source", str(tmp_path), target, "--", "--frobnicate")
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert "--frobnicate" in first
    assert last == "vfsd: virtiofsd ended with status 2 before it listened"


def test_more_queues_than_there_are(tmp_path: Path, target: str) -> None:
    with Backend(tmp_path / "s", {}, {}) as backend:
        words = complaint("mount", backend.path, target, "--queues", "2")
    assert words.startswith(f"--queues: '{backend.path}' offers 1 request queue(s), not 2")


@pytest.mark.parametrize(
    ("number", "value", "words"),
    [
        (Number.GET_FEATURES, 0, "offers no virtio 1 device"),
        (Number.GET_FEATURES, 1 << 32, "offers no virtio 1 device"),
        (Number.SET_FEATURES, 1, "refuses SET_FEATURES (1)"),
        (Number.SET_MEM_TABLE, 5, "refuses SET_MEM_TABLE (5)"),
        (Number.SET_VRING_KICK, 1, "refuses SET_VRING_KICK (1)"),
    ],
)
def test_a_back_end_that_refuses(
    tmp_path: Path, target: str, number: Number, value: int, words: str
) -> None:
    with Backend(tmp_path / "s", {}, {number: value}) as backend:
        assert words in complaint("mount", backend.path, target)


def test_a_back_end_that_hangs_up(tmp_path: Path, target: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        process = subprocess.Popen(
            [VFSD, "mount", str(tmp_path / "s"), target], stderr=subprocess.PIPE, text=True
        )
        listener.accept()[0].close()
        _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert errors.startswith(f"vfsd: the back-end at '{tmp_path / 's'}' ")
    assert errors.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a right away that only root has")
def test_without_the_right_to_mount(tmp_path: Path, target: str) -> None:
    prefix = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    with Backend(tmp_path / "s", {}, {}) as backend:
        words = complaint("mount", backend.path, target, prefix=prefix)
    assert words == f"no permission to mount on '{target}'; mount as root (CAP_SYS_ADMIN)"
