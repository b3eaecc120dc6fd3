# SPDX-License-Identifier: Apache-2.0
"""What a Landlock domain leaves to a guest: all of its ops, above all moves between directories."""

import os
import stat
from collections.abc import Iterator

import pytest

from .conftest import OPTIONS, Folder
from .daemon import Daemon
from .fuse import (
    CREATE_IN,
    FATTR_SIZE,
    LINK_IN,
    MKNOD_IN,
    RENAME_IN,
    SETATTR_IN,
    Entry,
    Guest,
    Op,
    names,
)

MODES = {
    "chroot": ("--sandbox=chroot",),
    "none": ("--sandbox=none",),
    "none, handles": ("--sandbox=none", "--inode-file-handles=prefer"),
}


@pytest.fixture(scope="module", params=MODES)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with Daemon(*OPTIONS, *MODES[request.param]) as running:
        yield running


def test_files_move_and_are_linked_between_directories(guest: Guest, folder: Folder) -> None:
    ours, theirs = (folder.sub(guest, name) for name in ("ours", "theirs"))
    (ours.path / "file").write_text("content")
    (ours.path / "directory").mkdir()
    nodeid = guest.lookup(ours.nodeid, b"file").nodeid
    guest.call(Op.LINK, theirs.nodeid, LINK_IN.pack(nodeid) + names(b"link"))
    for name in (b"file", b"directory"):
        guest.call(Op.RENAME, ours.nodeid, RENAME_IN.pack(theirs.nodeid) + names(name, name))
    assert sorted(os.listdir(theirs.path)) == ["directory", "file", "link"]  # noqa: PTH208
    assert (theirs.path / "link").read_text() == "content"


def test_files_are_made_changed_and_removed(guest: Guest, folder: Folder) -> None:
    for kind in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        name = names(f"{kind:o}".encode())
        guest.call(Op.MKNOD, folder.nodeid, MKNOD_IN.pack(kind | 0o644, 0, 0, 0) + name)
        guest.call(Op.UNLINK, folder.nodeid, name)
    guest.call(Op.SYMLINK, folder.nodeid, names(b"symlink", b"target"))
    (folder.path / "file").write_bytes(b"x" * 100)
    nodeid = guest.lookup(folder.nodeid, b"file").nodeid
    guest.call(Op.SETATTR, nodeid, SETATTR_IN.pack(FATTR_SIZE, 0, 0, 7, *[0] * 12))
    assert (folder.path / "file").stat().st_size == 7
    guest.release(nodeid, guest.open(nodeid, os.O_RDWR))
    (folder.path / "directory").mkdir()
    guest.call(Op.RMDIR, folder.nodeid, names(b"directory"))


def test_a_file_without_a_name_is_linked(guest: Guest, folder: Folder) -> None:
    other = folder.sub(guest, "other")
    body = CREATE_IN.pack(os.O_RDWR, 0o100640, 0, 0) + names(b"#tmp")
    made = Entry.parse(guest.call(Op.TMPFILE, folder.nodeid, body, room=144))
    guest.call(Op.LINK, other.nodeid, LINK_IN.pack(made.nodeid) + names(b"shown"))
    assert (other.path / "shown").exists()
