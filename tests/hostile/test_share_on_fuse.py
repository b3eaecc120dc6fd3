# SPDX-License-Identifier: Apache-2.0
"""A share on a FUSE mount: its handles stop working when the mount's server forgets a node."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.system.mounted import Mounted

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Guest

FILES = 2000
DENTRIES_AND_INODES = "2"


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text(DENTRIES_AND_INODES)


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A FUSE mount with FILES files in its folder d."""
    require("root")
    require("/dev/fuse")
    parent = tmp_path_factory.mktemp("lower")
    folder = parent / "source/d"
    folder.mkdir(parents=True)
    for number in range(FILES):
        (folder / str(number)).write_text(str(number))
    with Mounted(parent, f"--source={parent / 'source'}", "--queues=1") as mounted:
        yield mounted.path


def assert_all_can_be_read(daemon: Daemon, way: bytes, files: int) -> None:
    """Look the files up below the directory `way`, and read them after the host's caches have
    dropped them."""
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        folder = ROOT
        for name in way.split(b"/"):
            folder = guest.lookup(folder, name).nodeid
        nodeids = [guest.lookup(folder, b"%d" % number).nodeid for number in range(files)]
        drop_caches()
        for number, nodeid in enumerate(nodeids):
            fh = guest.open(nodeid, os.O_RDONLY)
            assert guest.read(nodeid, fh, 0, 16) == b"%d" % number
            guest.release(nodeid, fh)


@pytest.mark.parametrize(("handles", "files"), [("auto", FILES), ("prefer", 100), ("signed", 100)])
def test_every_file_works_when_the_caches_below_are_empty(
    handles: str, files: int, lower: Path
) -> None:
    with Daemon(f"--inode-file-handles={handles}", share=lower) as daemon:
        assert_all_can_be_read(daemon, b"d", files)


@pytest.mark.parametrize("handles", ["prefer", "signed"])
def test_the_same_where_only_a_part_of_the_share_is_on_fuse(handles: str, lower: Path) -> None:
    with Daemon(f"--inode-file-handles={handles}", share=lower.parent) as daemon:
        assert_all_can_be_read(daemon, b"mnt/d", 100)


def test_as_many_files_can_be_open_as_where_each_inode_is_an_fd(lower: Path) -> None:
    limits = []
    for options, share in (((), lower), (("--inode-file-handles=never",), lower.parent)):
        with Daemon(*options, share=share) as daemon:
            limits.append(resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE))
    assert limits[0] == limits[1]


def test_an_operator_who_insists_on_handles_learns_why_there_are_none(lower: Path) -> None:
    with Daemon("--inode-file-handles=mandatory", share=lower) as daemon:
        wait_until(daemon.exited, 20, "the daemon gives up")
        assert "no lasting handles (FUSE, virtio-fs)" in daemon.log.read_text()
