# SPDX-License-Identifier: Apache-2.0
"""Leaving the share: every opcode that takes a name, in every sandbox mode, against a victim."""

import os
import stat
from pathlib import Path

import pytest

from tests.sandbox_modes import in_every_mode

from .daemon import Daemon
from .driver import Frontend
from .fuse import (
    CREATE_IN,
    LINK_IN,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_IN,
    RENAME2_IN,
    RENAME_IN,
    ROOT,
    Guest,
    Op,
    names,
)

pytestmark = in_every_mode


@pytest.fixture
def outside(daemon: Daemon) -> Path:
    """A file and a directory beside the share, which the user of the daemon may change."""
    (daemon.folder / "victim").write_text("untouched")
    (daemon.folder / "victims").mkdir(exist_ok=True)
    (daemon.folder / "victims/child").write_text("untouched")
    for theirs in ("victim", "victims", "victims/child"):
        daemon.give(daemon.folder / theirs)
    return daemon.folder


def tree(folder: Path, share: Path) -> dict[str, object]:
    """Everything below `folder` that is not the share: name -> mode, size, times, content."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_relative_to(share) or path.name in ("log", "socket"):
            continue
        st = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(st.st_mode) else b""
        found[str(path)] = (st.st_ino, st.st_mode, st.st_nlink, st.st_uid, st.st_mtime_ns, content)
    return found


def paths_out(outside: Path) -> list[bytes]:
    far = os.fsencode(outside)
    return [
        b"../victim",
        b"../victims",
        b"../new",
        b"sub/../../victim",
        b"../victims/child",
        b"..",
        b"../..",
        b"./../victim",
        b"//victim",
        far + b"/victim",
        far + b"/new",
        b"/victim",
        b"link/child",
        b"filelink/",
    ]


def test_no_name_leads_out(guest: Guest, daemon: Daemon, outside: Path) -> None:
    share = daemon.share
    (share / "sub").mkdir(exist_ok=True)
    (share / "mine").write_text("mine")
    (share / "link").symlink_to("../victims")
    (share / "filelink").symlink_to(outside / "victim")
    for own in ("sub", "mine", "link", "filelink"):
        daemon.give(share / own)
    mine = guest.lookup(ROOT, b"mine").nodeid
    sub = guest.lookup(ROOT, b"sub").nodeid
    before = tree(outside, share)
    requests = {
        Op.MKDIR: (MKDIR_IN.pack(0o755, 0), b""),
        Op.MKNOD: (MKNOD_IN.pack(stat.S_IFREG | 0o644, 0, 0, 0), b""),
        Op.CREATE: (CREATE_IN.pack(os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o100644, 0, 0), b""),
        Op.UNLINK: (b"", b""),
        Op.RMDIR: (b"", b""),
        Op.LINK: (LINK_IN.pack(mine), b""),
        Op.SYMLINK: (b"", b"target\0"),
        Op.LOOKUP: (b"", b""),
    }
    for name in paths_out(outside):
        for parent in (ROOT, sub):
            for op, (argument, tail) in requests.items():
                reply = guest.ask(op, parent, argument + names(name) + tail)
                assert reply.error or (op == Op.LOOKUP and name == b".."), (op, name)
            for argument, op in (
                (RENAME_IN.pack(ROOT), Op.RENAME),
                (RENAME2_IN.pack(sub, 0, 0), Op.RENAME2),
                (RENAME2_IN.pack(ROOT, 2, 0), Op.RENAME2),
            ):
                assert guest.ask(op, ROOT, argument + names(b"mine", name)).error, (op, name)
                assert guest.ask(op, parent, argument + names(name, b"stolen")).error, (op, name)
    assert tree(outside, share) == before
    assert not (share / "stolen").exists()
    assert (share / "mine").read_text() == "mine"


def test_symlinks_are_never_followed(guest: Guest, daemon: Daemon, outside: Path) -> None:
    share = daemon.share
    before = tree(outside, share)
    for name, target in ((b"file", outside / "victim"), (b"dir", outside / "victims")):
        path = share / f"out-{name.decode()}"
        path.symlink_to(target)
        daemon.give(path)
        nodeid = guest.lookup(ROOT, b"out-" + name).nodeid
        assert stat.S_ISLNK(guest.getattr(nodeid).mode)
        for op in (Op.OPEN, Op.OPENDIR):
            for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_PATH):
                assert guest.ask(op, nodeid, OPEN_IN.pack(flags, 0)).error
        assert guest.ask(Op.LOOKUP, nodeid, names(b"child")).error
        assert guest.ask(Op.UNLINK, nodeid, names(b"child")).error
        assert guest.ask(Op.MKDIR, nodeid, MKDIR_IN.pack(0o755, 0) + names(b"new")).error
        body = CREATE_IN.pack(os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o100644, 0, 0)
        assert guest.ask(Op.CREATE, ROOT, body + names(b"out-" + name)).error
        # These ops are for the attributes of the link itself: its owner changes, the victim's does
        # not.
        attributes = (1 << 1 | 1 << 4 | 1 << 5).to_bytes(4, "little") + bytes(84)
        guest.ask(Op.SETATTR, nodeid, attributes)
    assert tree(outside, share) == before


def test_dot_dot_stops_at_the_root(guest: Guest, daemon: Daemon) -> None:
    assert guest.lookup(ROOT, b"..").attr.ino == daemon.share.stat().st_ino
    for entry in guest.list(ROOT, plus=True):
        if entry.name == b"..":
            assert entry.entry is not None
            assert entry.entry.nodeid == 0
    (daemon.share / "deep").mkdir(exist_ok=True)
    deep = guest.lookup(ROOT, b"deep").nodeid
    assert guest.lookup(deep, b"..").attr.ino == daemon.share.stat().st_ino


def test_a_directory_the_host_moves_out_of_the_share(
    guest: Guest, daemon: Daemon, outside: Path
) -> None:
    """`..` of a directory that was moved out while the guest held it leads no further out."""
    (daemon.share / "moving").mkdir()
    moving = guest.lookup(ROOT, b"moving").nodeid
    (daemon.share / "moving").rename(outside / "moved")
    reply = guest.ask(Op.LOOKUP, moving, names(b".."))
    try:
        if reply.error == 0:
            nodeid = int.from_bytes(reply.data[:8], "little")
            assert guest.ask(Op.LOOKUP, nodeid, names(b"victim")).error, (
                "the guest has left the share"
            )
    finally:
        (outside / "moved").rmdir()


def test_two_daemons_at_once_stay_apart(daemon: Daemon, guest: Guest) -> None:
    with Daemon(mode=daemon.mode) as other, Frontend(other.socket) as frontend:
        second = Guest(frontend.setup(1))
        second.init()
        (other.share / "theirs").touch()
        (daemon.share / "ours").touch()
        assert second.lookup(ROOT, b"theirs").attr.size == 0
        assert second.ask(Op.LOOKUP, ROOT, names(b"ours")).error
        assert guest.ask(Op.LOOKUP, ROOT, names(b"theirs")).error
