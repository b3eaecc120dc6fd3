# SPDX-License-Identifier: Apache-2.0
"""Paths as people have them: through links, with the separators of options, too long for a socket
address."""

from pathlib import Path

from tests.conftest import require

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
