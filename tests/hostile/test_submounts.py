# SPDX-License-Identifier: Apache-2.0
"""File systems mounted inside the share: announced, crossed, and never taken for one another."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import OPTIONS, Folder
from .daemon import Daemon
from .driver import Frontend
from .fuse import ROOT, STATX_IN, Guest, Op, expect, names

SUBMOUNTS = 1 << 27  # INIT
ATTR_SUBMOUNT = 1
STATX_INO_AT = 64  # in struct fuse_statx_out

MODES = (
    ("--sandbox=chroot", "--inode-file-handles=prefer"),
    ("--sandbox=chroot", "--inode-file-handles=never"),
    ("--sandbox=none", "--inode-file-handles=prefer"),
    ("--sandbox=namespace", "--inode-file-handles=never"),
    ("--sandbox=namespace", "--inode-file-handles=prefer"),
    ("--sandbox=none", "--inode-file-handles=never"),
)


@pytest.fixture(scope="module", params=MODES, ids=" ".join)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with Daemon(*OPTIONS, *request.param, is_shared_mount=True) as running:
        yield running


def mount(path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)


def unmount(path: Path) -> None:
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def submount(folder: Folder) -> Iterator[Path]:
    """A tmpfs in the share, mounted after the daemon has started."""
    path = folder.path / "mount"
    path.mkdir()
    mount(path)
    yield path
    unmount(path)


def test_a_mount_point_is_announced(guest: Guest, folder: Folder, submount: Path) -> None:
    assert guest.flags & SUBMOUNTS
    (submount / "inside").mkdir()
    entry = guest.lookup(folder.nodeid, b"mount")
    assert entry.attr.flags == ATTR_SUBMOUNT
    assert entry.attr.ino == submount.stat().st_ino
    assert guest.lookup(entry.nodeid, b"inside").attr.flags == 0


def test_it_is_not_announced_to_who_does_not_know(
    guest: Guest, folder: Folder, submount: Path
) -> None:
    guest.init(flags=guest.flags & ~SUBMOUNTS)
    home = guest.lookup(ROOT, folder.name).nodeid
    entry = guest.lookup(home, submount.name.encode())
    assert entry.attr.flags == 0


def test_files_are_made_and_used_beyond_it(guest: Guest, folder: Folder, submount: Path) -> None:
    nodeid = guest.lookup(folder.nodeid, b"mount").nodeid
    entry, fh = guest.create(nodeid, b"x")
    guest.write(entry.nodeid, fh, 0, b"there")
    guest.release(entry.nodeid, fh)
    assert (submount / "x").read_bytes() == b"there"
    fh = guest.open(guest.lookup(nodeid, b"x").nodeid, os.O_RDONLY)
    assert guest.read(entry.nodeid, fh, 0, 9) == b"there"
    guest.release(entry.nodeid, fh)
    listed = {e.name for e in guest.list(nodeid, plus=True)}
    assert listed == {b".", b"..", b"x"}
    (folder.path / "y").touch()
    body = (nodeid).to_bytes(8, "little") + names(b"y", b"y")
    expect(errno.EXDEV, guest.ask(Op.RENAME, folder.nodeid, body))


def test_listing_tells_the_attributes_of_what_is_mounted(
    guest: Guest, folder: Folder, submount: Path
) -> None:
    (entry,) = (e for e in guest.list(folder.nodeid, plus=True) if e.name == b"mount")
    assert entry.entry is not None
    assert entry.entry.attr.ino == submount.stat().st_ino
    assert entry.entry.attr.flags == ATTR_SUBMOUNT


def test_equal_inode_numbers_on_two_mounts_are_two_files(guest: Guest, folder: Folder) -> None:
    paths = [folder.path / "one", folder.path / "two"]
    try:
        for path in paths:
            path.mkdir()
            mount(path)
            for name in ("a", "b", "c"):
                (path / name).write_text(f"{path.name} {name}")
        for name in ("a", "b", "c"):
            found = []
            for path in paths:
                home = guest.lookup(folder.nodeid, path.name.encode()).nodeid
                entry = guest.lookup(home, name.encode())
                fh = guest.open(entry.nodeid, os.O_RDONLY)
                data = guest.read(entry.nodeid, fh, 0, 99)
                assert data == f"{path.name} {name}".encode()
                guest.release(entry.nodeid, fh)
                found.append(entry)
            assert found[0].attr.ino == found[1].attr.ino, (
                "each tmpfs gives its first file the same number"
            )
            assert found[0].nodeid != found[1].nodeid
    finally:
        for path in paths:
            unmount(path)


def numbers(guest: Guest, nodeid: int, name: bytes) -> set[int]:
    """The inode numbers of a file, from every reply that shows a number to a guest."""
    entry = guest.lookup(nodeid, name)
    (listed,) = (e for e in guest.list(nodeid) if e.name == name)
    (plus,) = (e for e in guest.list(nodeid, plus=True) if e.name == name)
    assert plus.entry is not None
    body = STATX_IN.pack(0, 0, 0, 0, 0x7FF)
    statx = guest.call(Op.STATX, entry.nodeid, body, room=288)
    return {
        entry.attr.ino, listed.ino, plus.ino, plus.entry.attr.ino, guest.getattr(entry.nodeid).ino,
        int.from_bytes(statx[STATX_INO_AT : STATX_INO_AT + 8], "little"),
    }  # fmt: skip


def test_a_guest_without_submounts_sees_one_file_system(guest: Guest, folder: Folder) -> None:
    """In this case no two files have the same number, and the share's own files keep theirs."""
    guest.init(flags=guest.flags & ~SUBMOUNTS)
    home = guest.lookup(ROOT, folder.name).nodeid
    paths = [folder.path / "one", folder.path / "two"]
    try:
        for path in paths:
            path.mkdir()
            mount(path)
            (path / "a").touch()
        (folder.path / "own").touch()
        assert numbers(guest, home, b"own") == {(folder.path / "own").stat().st_ino}
        found: list[int] = []
        for path in paths:
            inside = guest.lookup(home, path.name.encode())
            found += numbers(guest, inside.nodeid, b"a")
            assert inside.attr.ino == guest.getattr(inside.nodeid).ino
            found.append(inside.attr.ino)
        assert len(found) == len(set(found)) == 4, "one number for each file, the same each time"
        assert all(0 < number < 1 << 63 for number in found)
        again = [numbers(guest, guest.lookup(home, p.name.encode()).nodeid, b"a") for p in paths]
        assert [*again[0], *again[1]] == [found[0], found[2]]
    finally:
        for path in paths:
            unmount(path)


def test_what_was_unmounted_shows_what_is_below(guest: Guest, folder: Folder) -> None:
    path = folder.path / "mount"
    path.mkdir()
    (path / "below").touch()
    mount(path)
    try:
        (path / "above").touch()
        first = guest.lookup(folder.nodeid, b"mount")
        guest.lookup(first.nodeid, b"above")
    finally:
        unmount(path)
    second = guest.lookup(folder.nodeid, b"mount")
    assert second.nodeid != first.nodeid
    assert second.attr.flags == 0
    guest.lookup(second.nodeid, b"below")


def test_no_submount_is_announced_if_the_option_is_off() -> None:
    with Daemon("--no-announce-submounts") as daemon:
        path = daemon.share / "mount"
        path.mkdir()
        mount(path)
        try:
            with Frontend(daemon.socket) as frontend:
                guest = Guest(frontend.setup(1))
                guest.init()
                assert not guest.flags & SUBMOUNTS
                assert guest.lookup(ROOT, b"mount").attr.flags == 0
                (path / "file").touch()
                home = guest.lookup(ROOT, b"mount").nodeid
                assert guest.lookup(home, b"file").attr.ino != (path / "file").stat().st_ino
        finally:
            unmount(path)
