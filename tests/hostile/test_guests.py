# SPDX-License-Identifier: Apache-2.0
"""What guests other than Linux send and expect, by the sources of their drivers; docs/guests.md."""

import errno
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import OPTIONS, Folder
from .daemon import Daemon
from .driver import Frontend
from .fuse import ROOT, STATFS_OUT, Attr, Guest, Op, expect, names
from .statfs_mount import StatfsMount

READDIRPLUS, READDIRPLUS_AUTO, MAX_PAGES = 1 << 13, 1 << 14, 1 << 22
WINDOWS = READDIRPLUS | MAX_PAGES  # with FUSE 7.31


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(*OPTIONS, "--negative-timeout=1") as running:
        yield running


@pytest.fixture
def guest(frontend: Frontend) -> Guest:
    """One that is not Linux."""
    guest = Guest(frontend)
    guest.init(31, WINDOWS)
    return guest


def listed(guest: Guest, nodeid: int) -> dict[bytes, Attr]:
    """Attributes by name, of READDIRPLUS."""
    return {e.name: e.entry.attr for e in guest.list(nodeid, plus=True) if e.entry}


# Attributes.


def block_sizes(guest: Guest) -> tuple[int, int]:
    fields = STATFS_OUT.unpack(guest.call(Op.STATFS, ROOT, room=80))
    return fields[5], fields[7]


def test_blocks_have_one_size(tmp_path: Path) -> None:
    """Windows multiplies what is counted in fragments by the size of a block."""
    with (
        StatfsMount(tmp_path, block=1 << 20, fragment=4096) as mounted,
        Daemon(share=mounted.path) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init(31, WINDOWS)
        assert block_sizes(guest) == (4096, 4096)
        guest.init()
        assert block_sizes(guest) == (1 << 20, 4096), "Linux knows both"


# Names.


def test_a_name_that_does_not_exist_is_an_error(guest: Guest, folder: Folder) -> None:
    """nodeid 0 would be an inode."""
    expect(errno.ENOENT, guest.ask(Op.LOOKUP, folder.nodeid, names(b"absent")))


# Directories.


def test_dot_and_dot_dot_have_attributes(guest: Guest, folder: Folder) -> None:
    sub = folder.sub(guest, "sub")
    found = listed(guest, sub.nodeid)
    assert found[b"."] == guest.getattr(sub.nodeid)
    assert found[b".."] == guest.getattr(folder.nodeid)


def test_dot_dot_of_the_root_is_the_root(guest: Guest) -> None:
    found = listed(guest, ROOT)
    assert found[b"."] == found[b".."] == guest.getattr(ROOT)


def test_of_a_parent_that_the_guest_does_not_know_only_the_type_is_told(
    guest: Guest, folder: Folder
) -> None:
    sub = folder.sub(guest, "sub")
    guest.forget(folder.nodeid)
    up = listed(guest, sub.nodeid)[b".."]
    assert (up.ino, up.mode) == (folder.path.stat().st_ino, stat.S_IFDIR)
    assert (up.mtime, up.uid, up.size) == (0, 0, 0)


def test_dot_and_dot_dot_have_a_type_for_linux(frontend: Frontend, folder: Folder) -> None:
    guest = Guest(frontend)
    guest.init()
    nodeid = guest.lookup(ROOT, folder.name).nodeid
    found = listed(guest, nodeid)
    assert [found[name].mode for name in (b".", b"..")] == [stat.S_IFDIR] * 2
