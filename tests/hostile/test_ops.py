# SPDX-License-Identifier: Apache-2.0
"""Every opcode, byte by byte: what a correct guest may send, on a real directory.

Guest.finish checks the used length, the out header's length and `unique` of each reply.
"""

import errno
import os
import stat
import struct
import time
from pathlib import Path

import pytest

from .conftest import QUEUES, Folder
from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import (
    ACCESS_IN,
    ATTR,
    ATTR_OUT,
    BATCH_FORGET_IN,
    CREATE_SUPP_GROUP,
    EXT_GROUPS,
    FORGET_ONE,
    INIT_EXT,
    INIT_IN,
    LINK_IN,
    LINUX_FLAGS,
    MKDIR_IN,
    MKNOD_IN,
    RENAME2_IN,
    RENAME_IN,
    ROOT,
    SETATTR_IN,
    STATFS_OUT,
    STATX_IN,
    Attr,
    Entry,
    Guest,
    Op,
    expect,
    names,
)

STALE = (errno.ESTALE, errno.ENOENT, errno.EBADF)


def assert_same_attr(attr: Attr, path: Path) -> None:
    st = path.lstat()
    assert (attr.ino, attr.size, attr.mode, attr.nlink) == (
        st.st_ino, st.st_size, st.st_mode, st.st_nlink,
    )  # fmt: skip
    assert (attr.uid, attr.gid, attr.blocks, attr.rdev) == (
        st.st_uid, st.st_gid, st.st_blocks, st.st_rdev,
    )  # fmt: skip
    assert attr.mtime * 10**9 + attr.mtimensec == st.st_mtime_ns
    assert attr.ctime * 10**9 + attr.ctimensec == st.st_ctime_ns


# INIT.


@pytest.mark.parametrize("minor", range(27, 46))
def test_init_is_answered_for_every_minor(frontend: Frontend, minor: int) -> None:
    got = Guest(frontend).init(minor)
    offered = LINUX_FLAGS
    assert got.major == 7
    assert got.minor == minor
    assert got.max_write >= 4096
    assert got.time_gran == 1
    agreed = got.flags | got.flags2 << 32
    assert agreed & ~offered == 0, f"flags that were not offered: {agreed & ~offered:#x}"


def test_init_agrees_on_no_flag_that_was_not_offered(frontend: Frontend) -> None:
    guest = Guest(frontend)
    got = guest.init(41, flags=0)
    assert (got.flags, got.flags2) == (0, 0)
    got = guest.init(41, flags=LINUX_FLAGS & ~INIT_EXT)
    assert got.flags2 == 0, "flags2 count only with INIT_EXT"


def test_init_of_an_old_guest_is_16_bytes_long(frontend: Frontend) -> None:
    guest = Guest(frontend)
    body = INIT_IN.pack(7, 31, 65536, LINUX_FLAGS & 0x7FFF_FFFF & ~INIT_EXT, 0)[:16]
    assert len(guest.call(Op.INIT, 0, body, room=64)) == 64
    guest.getattr(ROOT)


def test_init_of_a_newer_major_is_answered_with_ours(frontend: Frontend) -> None:
    guest = Guest(frontend)
    data = guest.call(Op.INIT, 0, INIT_IN.pack(8, 0, 0, 0, 0), room=64)
    assert struct.unpack_from("<I", data) == (7,)
    guest.init()
    guest.getattr(ROOT)


@pytest.mark.parametrize("version", [(6, 45), (7, 0), (7, 4), (7, 22), (7, 26)])
def test_init_of_an_old_protocol_is_refused(frontend: Frontend, version: tuple[int, int]) -> None:
    guest = Guest(frontend)
    expect(errno.EPROTO, guest.ask(Op.INIT, 0, INIT_IN.pack(*version, 0, 0, 0), room=64))
    guest.init()
    guest.getattr(ROOT)


@pytest.mark.parametrize("queue", range(1, QUEUES + 1))
def test_init_works_on_every_request_queue(frontend: Frontend, queue: int) -> None:
    guest = Guest(frontend)
    guest.init(queue=queue)
    for other in range(1, QUEUES + 1):
        guest.lookup(ROOT, b".", queue=other)


def test_destroy_ends_the_session_and_init_begins_another(guest: Guest, folder: Folder) -> None:
    assert guest.call(Op.DESTROY, 0) == b""
    assert guest.ask(Op.GETATTR, folder.nodeid, bytes(16)).error
    guest.init()
    assert guest.ask(Op.GETATTR, folder.nodeid, bytes(16)).error in STALE
    guest.lookup(ROOT, folder.name)


# LOOKUP, FORGET.


def test_a_nodeid_lives_until_every_lookup_was_forgotten(guest: Guest, folder: Folder) -> None:
    (folder.path / "x").touch()
    nodeids = {guest.lookup(folder.nodeid, b"x", queue=1 + i % QUEUES).nodeid for i in range(5)}
    assert len(nodeids) == 1
    (nodeid,) = nodeids
    guest.forget(nodeid, 3)
    guest.forget(nodeid, 1, queue=2)
    assert_same_attr(guest.getattr(nodeid), folder.path / "x")
    guest.forget(nodeid, 1)
    assert guest.ask(Op.GETATTR, nodeid, bytes(16), room=104).error in STALE
    assert guest.lookup(folder.nodeid, b"x").attr.nlink == 1


def test_batch_forget_takes_back_all_it_names(guest: Guest, folder: Folder) -> None:
    nodeids = []
    for i in range(50):
        (folder.path / f"{i}").touch()
        nodeids.append(guest.lookup(folder.nodeid, b"%d" % i).nodeid)
    ones = b"".join(FORGET_ONE.pack(nodeid, 1) for nodeid in nodeids[:-1])
    guest.ask(Op.BATCH_FORGET, 0, BATCH_FORGET_IN.pack(49, 0) + ones, queue=0)
    for nodeid in nodeids[:-1]:
        assert guest.ask(Op.GETATTR, nodeid, bytes(16), room=104).error in STALE
    guest.getattr(nodeids[-1])


def test_forgotten_inodes_hold_no_fds(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    for i in range(200):
        (folder.path / f"{i}").touch()
    before = max(daemon.fd_counts().values())
    nodeids = [guest.lookup(folder.nodeid, b"%d" % i).nodeid for i in range(200)]
    for nodeid in nodeids:
        guest.forget(nodeid)
    for queue in range(QUEUES + 1):  # let every worker pass a quiescent point
        guest.ask(Op.STATFS, queue=queue)
    wait_until(lambda: max(daemon.fd_counts().values()) <= before + 20, 3, "fds are closed")


def test_a_hard_link_has_the_same_nodeid(guest: Guest, folder: Folder) -> None:
    (folder.path / "a").touch()
    (folder.path / "b").hardlink_to(folder.path / "a")
    assert guest.lookup(folder.nodeid, b"a").nodeid == guest.lookup(folder.nodeid, b"b").nodeid


def test_lookup_fails_as_the_file_system_does(guest: Guest, folder: Folder) -> None:
    (folder.path / "file").touch()
    file = guest.lookup(folder.nodeid, b"file").nodeid
    expect(errno.ENOENT, guest.ask(Op.LOOKUP, folder.nodeid, names(b"absent")))
    expect(errno.ENOTDIR, guest.ask(Op.LOOKUP, file, names(b"x")))
    expect(errno.ENAMETOOLONG, guest.ask(Op.LOOKUP, folder.nodeid, names(b"x" * 256)))
    expect(errno.ENOENT, guest.ask(Op.LOOKUP, folder.nodeid, names(b"x" * 255)))


def test_dot_dot_of_the_root_is_the_root(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    root = daemon.share.stat().st_ino
    assert guest.lookup(ROOT, b"..").attr.ino == root
    assert guest.lookup(folder.nodeid, b"..").attr.ino == root
    assert guest.lookup(folder.nodeid, b".").nodeid == folder.nodeid


# Attributes.


@pytest.mark.parametrize("pieces", [(), (7,), (40, 3), (1, 2, 3, 5, 8, 13)])
def test_getattr_is_what_the_host_says(
    guest: Guest, folder: Folder, pieces: tuple[int, ...]
) -> None:
    data = guest.call(Op.GETATTR, folder.nodeid, bytes(16), room=104, pieces=pieces)
    assert len(data) == 104
    assert_same_attr(Attr(*ATTR.unpack_from(data, ATTR_OUT.size)), folder.path)


def setattr_body(valid: int, **fields: int) -> bytes:
    order = (
        "fh", "size", "lock_owner", "atime", "mtime", "ctime", "atimensec", "mtimensec",
        "ctimensec", "mode", "unused", "uid", "gid", "unused2",
    )  # fmt: skip
    return SETATTR_IN.pack(valid, 0, *(fields.get(name, 0) for name in order))


def test_setattr_changes_what_valid_says_and_no_more(guest: Guest, folder: Folder) -> None:
    path = folder.path / "x"
    path.write_bytes(b"0123456789")
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    everything = {"size": 3, "mode": 0o100640, "uid": 1000, "gid": 1001}
    everything |= {"atime": 11, "atimensec": 5, "mtime": 12, "mtimensec": 6}
    before = path.stat()
    for valid, changed in (
        (1 << 0, ("st_mode",)),
        (1 << 1, ("st_uid",)),
        (1 << 2, ("st_gid",)),
        (1 << 3, ("st_size", "st_mtime_ns")),
        (1 << 4, ("st_atime_ns",)),
        (1 << 5, ("st_mtime_ns",)),
    ):
        data = guest.call(Op.SETATTR, nodeid, setattr_body(valid, **everything), room=104)
        after = path.stat()
        assert_same_attr(Attr(*ATTR.unpack_from(data, ATTR_OUT.size)), path)
        for name in ("st_mode", "st_uid", "st_gid", "st_size", "st_atime_ns", "st_mtime_ns"):
            assert (getattr(before, name) != getattr(after, name)) == (name in changed), name
        before = after
    assert (before.st_mode, before.st_uid, before.st_gid, before.st_size) == (
        0o100640, 1000, 1001, 3,
    )  # fmt: skip
    assert (before.st_atime_ns, before.st_mtime_ns) == (11_000_000_005, 12_000_000_006)


def test_setattr_now_and_through_a_handle(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    path = folder.path / "x"
    os.utime(path, (1, 1))
    guest.call(Op.SETATTR, entry.nodeid, setattr_body(1 << 4 | 1 << 5 | 1 << 7 | 1 << 8))
    assert abs(path.stat().st_mtime - time.time()) < 60
    path.unlink()
    data = guest.call(Op.SETATTR, entry.nodeid, setattr_body(1 << 3 | 1 << 6, fh=fh, size=77))
    assert Attr(*ATTR.unpack_from(data, ATTR_OUT.size)).size == 77
    assert guest.getattr(entry.nodeid, fh)[:2] == (entry.attr.ino, 77)


def test_statx_has_what_statx_says(guest: Guest, folder: Folder) -> None:
    body = STATX_IN.pack(0, 0, 0, 0, 0xFFF)
    data = guest.call(Op.STATX, folder.nodeid, body, room=288)
    assert len(data) == 288
    mask, blksize, _, nlink, uid, gid, mode, ino = struct.unpack_from("<IIQIIIH2xQ", data, 32)
    st = folder.path.stat()
    assert mask & 0x7FF == 0x7FF
    assert (nlink, uid, gid, mode, ino) == (
        st.st_nlink, st.st_uid, st.st_gid, st.st_mode, st.st_ino,
    )  # fmt: skip
    assert blksize == st.st_blksize


def test_access_of_root_is_granted(guest: Guest, folder: Folder) -> None:
    (folder.path / "x").touch()
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    reply = guest.ask(Op.ACCESS, nodeid, ACCESS_IN.pack(os.R_OK, 0))
    assert reply.error in (0, errno.ENOSYS)  # ENOSYS: the guest relies on its own checks


def test_statfs_is_the_hosts(guest: Guest, folder: Folder) -> None:
    blocks, _, _, files, _, bsize, namelen, frsize, _ = STATFS_OUT.unpack(
        guest.call(Op.STATFS, folder.nodeid, room=80)
    )
    st = os.statvfs(folder.path)
    assert (blocks, files, bsize, namelen, frsize) == (
        st.f_blocks, st.f_files, st.f_bsize, st.f_namemax, st.f_frsize,
    )  # fmt: skip


# Names.


def test_mkdir_and_mknod_belong_to_who_asked(guest: Guest, folder: Folder) -> None:
    ids = (1234, 2345)
    body = MKDIR_IN.pack(0o40750, 0) + names(b"dir")
    made = Entry.parse(guest.call(Op.MKDIR, folder.nodeid, body, room=128, ids=ids))
    assert_same_attr(made.attr, folder.path / "dir")
    attr = made.attr
    assert (attr.mode, attr.nlink, attr.owner) == (0o40750, 2, ids)
    for name, mode in ((b"fifo", stat.S_IFIFO), (b"file", stat.S_IFREG), (b"sock", stat.S_IFSOCK)):
        body = MKNOD_IN.pack(mode | 0o640, 0, 0, 0) + names(name)
        made = Entry.parse(guest.call(Op.MKNOD, folder.nodeid, body, room=128, ids=ids))
        assert_same_attr(made.attr, folder.path / name.decode())
        attr = made.attr
        assert (attr.mode, attr.nlink, attr.owner) == (mode | 0o640, 1, ids)
    expect(errno.EEXIST, guest.ask(Op.MKDIR, folder.nodeid, MKDIR_IN.pack(0o755, 0) + b"dir\0"))


def test_mknod_makes_devices(guest: Guest, folder: Folder) -> None:
    rdev = os.makedev(1, 3)
    body = MKNOD_IN.pack(stat.S_IFCHR | 0o600, rdev, 0, 0) + names(b"null")
    made = Entry.parse(guest.call(Op.MKNOD, folder.nodeid, body))
    assert (folder.path / "null").stat().st_rdev == rdev
    assert made.attr.rdev == rdev


def test_ids_of_one_request_do_not_stick_to_the_next(guest: Guest, folder: Folder) -> None:
    for i, uid in enumerate((0, 1000, 0, 1001, 1001, 0)):
        body = MKDIR_IN.pack(0o755, 0) + names(b"%d" % i)
        guest.call(Op.MKDIR, folder.nodeid, body, ids=(uid, uid), queue=1 + i % 2)
        assert (folder.path / f"{i}").stat().st_uid == uid


def test_a_supplementary_group_opens_a_directory(guest: Guest, folder: Folder) -> None:
    got = guest.init(flags=LINUX_FLAGS)
    if not got.flags2 & CREATE_SUPP_GROUP >> 32:
        pytest.fail("CREATE_SUPP_GROUP was offered and not taken")
    path = folder.path / "grouped"
    path.mkdir()
    os.chown(path, 0, 5555)
    path.chmod(0o770)
    nodeid = guest.lookup(guest.lookup(ROOT, folder.name).nodeid, b"grouped").nodeid
    body = MKDIR_IN.pack(0o755, 0) + names(b"x")
    extension = struct.pack("<IIII", 16, EXT_GROUPS, 1, 5555)
    expect(errno.EACCES, guest.ask(Op.MKDIR, nodeid, body, ids=(1000, 1000)))
    guest.call(Op.MKDIR, nodeid, body, ids=(1000, 1000), extension=extension)
    assert (path / "x").stat().st_uid == 1000
    body = MKDIR_IN.pack(0o755, 0) + names(b"y")
    expect(errno.EACCES, guest.ask(Op.MKDIR, nodeid, body, ids=(1000, 1000)))


@pytest.mark.parametrize("target", [b"t", b"../../etc/passwd", b"/absolute", b"x" * 4000])
def test_symlink_and_readlink_pass_the_target_on(
    guest: Guest, folder: Folder, target: bytes
) -> None:
    body = names(b"link", target)
    made = Entry.parse(guest.call(Op.SYMLINK, folder.nodeid, body, room=128, ids=(7, 8)))
    assert os.fsencode((folder.path / "link").readlink()) == target
    assert_same_attr(made.attr, folder.path / "link")
    assert guest.call(Op.READLINK, made.nodeid, room=4096) == target
    # The guest's kernel follows symlinks, not the daemon.
    expect(errno.ENOTDIR, guest.ask(Op.LOOKUP, made.nodeid, names(b"passwd")))


def test_link_unlink_rmdir(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"a")
    linked = guest.call(Op.LINK, folder.nodeid, LINK_IN.pack(entry.nodeid) + names(b"b"), room=128)
    assert Entry.parse(linked).nodeid == entry.nodeid
    assert Entry.parse(linked).attr.nlink == 2
    guest.call(Op.UNLINK, folder.nodeid, names(b"a"))
    expect(errno.ENOENT, guest.ask(Op.UNLINK, folder.nodeid, names(b"a")))
    guest.call(Op.UNLINK, folder.nodeid, names(b"b"))
    assert guest.getattr(entry.nodeid, fh).nlink == 0
    assert guest.getattr(entry.nodeid).nlink == 0, "an unlinked file that the guest knows"
    guest.mkdir(guest.mkdir(folder.nodeid, b"d").nodeid, b"e")
    expect(errno.ENOTEMPTY, guest.ask(Op.RMDIR, folder.nodeid, names(b"d")))
    expect(errno.EISDIR, guest.ask(Op.UNLINK, folder.nodeid, names(b"d")))
    guest.call(Op.RMDIR, guest.lookup(folder.nodeid, b"d").nodeid, names(b"e"))
    guest.call(Op.RMDIR, folder.nodeid, names(b"d"))
    assert list(folder.path.iterdir()) == []


def test_rename_moves_between_directories(guest: Guest, folder: Folder) -> None:
    a, b = (guest.mkdir(folder.nodeid, name).nodeid for name in (b"a", b"b"))
    (folder.path / "a/x").write_text("x")
    (folder.path / "b/y").write_text("y")
    guest.call(Op.RENAME, a, RENAME_IN.pack(b) + names(b"x", b"z"))
    assert (folder.path / "b/z").read_text() == "x"
    body = RENAME2_IN.pack(b, 1, 0) + names(b"y", b"z")  # RENAME_NOREPLACE
    expect(errno.EEXIST, guest.ask(Op.RENAME2, b, body))
    guest.call(Op.RENAME2, b, RENAME2_IN.pack(b, 2, 0) + names(b"y", b"z"))  # RENAME_EXCHANGE
    assert (folder.path / "b/y").read_text() == "x"
    guest.call(Op.RENAME2, b, RENAME2_IN.pack(a, 0, 0) + names(b"y", b"y"))
    assert (folder.path / "a/y").read_text() == "x"
    expect(errno.ENOENT, guest.ask(Op.RENAME, a, RENAME_IN.pack(b) + names(b"no", b"z")))
