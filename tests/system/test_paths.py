# SPDX-License-Identifier: Apache-2.0
"""Paths that operators use: paths through symbolic links, paths that contain the separators of
options, and paths that are too long for a socket address."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.hostile.daemon import OURS
from tests.waiting import HANG, wait_until

from .mounted import Mounted, run


def test_a_link_with_a_slash_at_its_end_means_the_directory(tmp_path: Path) -> None:
    for what in ("root", "/dev/fuse"):
        require(what)
    share = tmp_path / "a,b=c"
    share.mkdir()
    (tmp_path / "link=").symlink_to(share)
    with Mounted(tmp_path, "--source", f"{tmp_path}/link=/", "--queues=1") as mount:
        run("echo text >file", mount.path)
        assert mount.unmount() == 0
    assert (share / "file").read_text() == "text\n"


@pytest.mark.parametrize("left_behind", [False, True])
def test_a_socket_path_is_as_long_as_a_path_can_be(tmp_path: Path, left_behind: bool) -> None:
    for what in ("root", "/dev/fuse"):
        require(what)
    path = tmp_path / ("x" * 100) / ("y" * 200) / "sock"
    path.parent.mkdir(parents=True)
    (tmp_path / "share").mkdir()
    arguments = [f"--socket-path={path}", f"--shared-dir={tmp_path}/share", "--keep-listening"]
    for kill in (True, False) if left_behind else (False,):
        with subprocess.Popen([*OURS, *arguments]) as daemon:
            wait_until(path.with_name("sock.pid").exists)
            wait_until(path.exists)
            again = subprocess.run(
                [*OURS, *arguments], capture_output=True, text=True, timeout=HANG, check=False
            )
            assert "is in use by a running program" in again.stderr
            if kill:
                path.rename(path.with_name("kept"))  # a daemon that ends does not remove it
                daemon.terminate()
                daemon.wait(HANG)
                path.with_name("kept").rename(path)
                continue
            with Mounted(tmp_path, str(path), "--queues=1") as mount:
                run("echo text >file", mount.path)
                assert mount.unmount() == 0
            daemon.terminate()
    assert not path.exists()
    assert (tmp_path / "share/file").read_text() == "text\n"
