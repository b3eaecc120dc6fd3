# SPDX-License-Identifier: Apache-2.0
"""The ids, groups, umask and FSETID that each request runs with, whatever ran before it."""

import errno
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import require
from tests.sandbox_modes import BY_CAPABILITY, OF_ROOT, SandboxMode, in_each_mode
from vfsd.worker.capabilities import KEPT

from .conftest import OPTIONS, QUEUES, Folder
from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import (
    ACCESS_IN,
    COPY_IN,
    CREATE_IN,
    CREATE_SUPP_GROUP,
    EXT_GROUPS,
    FALLOCATE_IN,
    FATTR_GID,
    FATTR_MODE,
    FATTR_SIZE,
    FATTR_UID,
    FSYNC_IN,
    LINUX_FLAGS,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_IN,
    OPEN_OUT,
    ROOT,
    SETATTR_IN,
    SETXATTR_IN,
    U64,
    Entry,
    Guest,
    Op,
    expect,
    names,
    write_in,
)

ROOT_FOLDER = Path(__file__).resolve().parents[2]
# With CAP_SETUID and CAP_SETGID an ordinary user's daemon acts for other users as root's does.
pytestmark = pytest.mark.sandbox_modes(*OF_ROOT, BY_CAPABILITY.name)

ALICE, BOB, CAROL = (1001, 2001), (1002, 2002), (1003, 2003)
# FUSE_INVALID_UIDGID, which Linux >= 6.12 sends with WRITE.
NOBODY_SAID = (0xFFFFFFFF, 0xFFFFFFFF)
KILL_SUIDGID = 4  # FUSE_WRITE_KILL_SUIDGID
FATTR_CTIME, FATTR_KILL_SUIDGID, OPEN_KILL_SUIDGID = 1 << 10, 1 << 11, 1
DONT_MASK, POSIX_ACL = 1 << 6, 1 << 20  # flags of INIT
CAP_FSETID = 1 << 4  # in force in a thread or not, as its last write needed
SETID = stat.S_ISUID | stat.S_ISGID


def groups(*gids: int) -> bytes:
    """The extension FUSE_EXT_GROUPS."""
    body = struct.pack(f"<I{len(gids)}I", len(gids), *gids)
    body += bytes(-len(body) % 8)
    return struct.pack("<II", 8 + len(body), EXT_GROUPS) + body


def mkdir(
    guest: Guest,
    folder: int,
    name: bytes,
    ids: tuple[int, int],
    *gids: int,
    queue: int = 1,
    mode: int = 0o755,
    umask: int = 0,
) -> Entry:
    body = MKDIR_IN.pack(mode, umask) + names(name)
    extension = groups(*gids) if gids else b""
    return Entry.parse(
        guest.call(Op.MKDIR, folder, body, ids=ids, extension=extension, queue=queue)
    )


def create(
    guest: Guest, folder: int, name: bytes, mode: int, ids: tuple[int, int], *gids: int,
    umask: int = 0, op: Op = Op.CREATE,
) -> tuple[Entry, int]:  # fmt: skip
    body = CREATE_IN.pack(os.O_CREAT | os.O_RDWR, stat.S_IFREG | mode, umask, 0) + names(name)
    extension = groups(*gids) if gids else b""
    data = guest.call(op, folder, body, room=144, ids=ids, extension=extension)
    return Entry.parse(data), OPEN_OUT.unpack_from(data, 128)[0]


class SetId(NamedTuple):
    """A file with set-id bits. A write by a process without CAP_FSETID takes these bits away."""

    nodeid: int
    fh: int
    path: Path

    def mode(self) -> int:
        return stat.S_IMODE(self.path.stat().st_mode)


def set_id_file(guest: Guest, folder: Folder, name: str, flags: int = 0) -> SetId:
    path = folder.path / name
    path.write_bytes(bytes(4096))
    os.chown(path, 4321, 8765)
    path.chmod(0o6755)
    nodeid = guest.lookup(folder.nodeid, name.encode()).nodeid
    return SetId(nodeid, guest.open(nodeid, os.O_RDWR | flags), path)


def write(guest: Guest, file: SetId, ids: tuple[int, int], flags: int = 0) -> None:
    body = write_in(fh=file.fh, size=1, write_flags=flags) + b"x"
    guest.call(Op.WRITE, file.nodeid, body, room=8, ids=ids)


def end_as_user(guest: Guest, folder: Folder) -> None:
    """Leave the worker with the ids of an ordinary user."""
    mkdir(guest, folder.nodeid, b"of-alice", ALICE)


def end_without_fsetid(guest: Guest, folder: Folder) -> None:
    """Leave the worker as root, but without CAP_FSETID."""
    write(guest, set_id_file(guest, folder, "killed"), BOB, KILL_SUIDGID)
    assert (folder.path / "killed").stat().st_mode & SETID == 0


def setattr_(
    guest: Guest, nodeid: int, valid: int, *, size: int = 0, mode: int = 0,
    owner: tuple[int, int] = (0, 0),
) -> None:  # fmt: skip
    body = SETATTR_IN.pack(valid, 0, 0, size, 0, 0, 0, 0, 0, 0, 0, mode, 0, *owner, 0)
    guest.call(Op.SETATTR, nodeid, body)


Leave = Callable[[Guest, Folder], None]
STATES = pytest.mark.parametrize("leave", [end_as_user, end_without_fsetid])


@pytest.fixture(scope="module", params=["threads", "inline"])
def daemon(request: pytest.FixtureRequest, sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    """A daemon with a thread pool, and a daemon that does the pool's work in the loop."""
    pool = {"threads": (), "inline": ("--thread-pool-size=0",)}[request.param]
    with Daemon(*OPTIONS, "--posix-acl=auto", *pool, mode=sandbox_mode) as running:
        yield running


@pytest.fixture
def guest(frontend: Frontend) -> Guest:
    """A guest that sends all groups that count: without ACLs these are the directory's group
    alone."""
    guest = Guest(frontend)
    guest.init(flags=LINUX_FLAGS & ~POSIX_ACL)
    return guest


# CAP_FSETID: set-id bits are removed if the guest asks for that, and only then.


@pytest.fixture
def kept(sandbox_mode: SandboxMode) -> int:
    """The set-id bits that remain after a change of the content. The host's kernel looks for the
    capability in the initial user namespace: in another user namespace each change removes the
    bits."""
    return 0 if sandbox_mode.has_user_namespace else SETID


@STATES
@pytest.mark.parametrize("ids", [(0, 0), NOBODY_SAID, ALICE])
@pytest.mark.parametrize("flags", [0, os.O_DSYNC])
def test_a_write_keeps_set_id_bits_unless_asked(
    guest: Guest, folder: Folder, leave: Leave, ids: tuple[int, int], flags: int, kept: int
) -> None:
    file = set_id_file(guest, folder, "suid", flags)
    leave(guest, folder)
    write(guest, file, ids)
    assert file.mode() == 0o755 | kept


@pytest.mark.parametrize("second", [0, os.O_DSYNC])
@pytest.mark.parametrize("first", [0, os.O_DSYNC])
def test_a_write_takes_set_id_bits_away_when_asked(
    guest: Guest, folder: Folder, first: int, second: int, kept: int
) -> None:
    one, two, three = (
        set_id_file(guest, folder, name, flags)
        for name, flags in (("one", first), ("two", second), ("three", second))
    )
    write(guest, one, ALICE, KILL_SUIDGID)
    write(guest, two, ALICE, KILL_SUIDGID)
    write(guest, three, (0, 0))
    assert [file.mode() for file in (one, two, three)] == [0o755, 0o755, 0o755 | kept]


# In a user namespace each change removes the bits.
@pytest.mark.sandbox_modes(*(mode for mode in OF_ROOT if mode != "userns"), BY_CAPABILITY.name)
@pytest.mark.parametrize("flags", [0, os.O_DSYNC])
@pytest.mark.parametrize(
    ("ids", "left"),
    [((4321, 8765), 0o2644), ((1, 8765), 0o2644), ((4321, 1), 0o644), (NOBODY_SAID, 0o2644)],
)
def test_the_requesters_group_decides_about_set_gid_without_execution(
    guest: Guest, folder: Folder, ids: tuple[int, int], left: int, flags: int
) -> None:
    """The result is the same whatever the worker did before, in the loop and in a thread."""
    file = set_id_file(guest, folder, "suid", flags)

    def after(change: Callable[[], object]) -> int:
        setattr_(guest, file.nodeid, FATTR_MODE, mode=0o6644)
        change()
        return file.mode()

    def truncate() -> None:
        body = SETATTR_IN.pack(FATTR_SIZE | FATTR_KILL_SUIDGID, *[0] * 15)
        guest.call(Op.SETATTR, file.nodeid, body, ids=ids)

    def open_truncating() -> None:
        body = OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, OPEN_KILL_SUIDGID)
        guest.call(Op.OPEN, file.nodeid, body, ids=ids)

    changes = (lambda: write(guest, file, ids, KILL_SUIDGID), truncate, open_truncating)
    for change in (*changes, *changes):
        assert after(change) == left
        end_as_user(guest, folder.sub(guest, str(len(list(folder.path.iterdir())))))
    write(guest, file, (0, 0))
    assert after(lambda: write(guest, file, (0, 0))) == 0o6644


@STATES
def test_fallocate_and_copy_keep_set_id_bits(
    guest: Guest, folder: Folder, leave: Leave, kept: int
) -> None:
    source = set_id_file(guest, folder, "source")
    grown = set_id_file(guest, folder, "grown")
    copied = set_id_file(guest, folder, "copied")
    leave(guest, folder)
    guest.call(Op.FALLOCATE, grown.nodeid, FALLOCATE_IN.pack(grown.fh, 0, 8192, 0, 0))
    leave(guest, folder.sub(guest, "again"))
    body = COPY_IN.pack(source.fh, 0, copied.nodeid, copied.fh, 0, 100, 0)
    guest.call(Op.COPY_FILE_RANGE, source.nodeid, body, room=8)
    assert (grown.mode(), copied.mode()) == (0o755 | kept, 0o755 | kept)


@STATES
def test_chmod_truncate_and_open_keep_set_id_bits(
    guest: Guest, folder: Folder, leave: Leave, kept: int
) -> None:
    file = set_id_file(guest, folder, "suid")
    leave(guest, folder)
    setattr_(guest, file.nodeid, FATTR_MODE, mode=0o6711)
    assert file.mode() == 0o6711
    leave(guest, folder.sub(guest, "two"))
    setattr_(guest, file.nodeid, FATTR_SIZE, size=1)
    assert file.mode() == 0o711 | kept
    leave(guest, folder.sub(guest, "three"))
    guest.open(file.nodeid, os.O_WRONLY | os.O_TRUNC)
    assert file.mode() == 0o711 | kept


@STATES
def test_an_acl_keeps_the_set_gid_bit_unless_asked(
    guest: Guest, folder: Folder, leave: Leave
) -> None:
    guest.init()
    folder = Folder(guest.lookup(ROOT, folder.name).nodeid, folder.path, folder.name)
    file = set_id_file(guest, folder, "suid")
    leave(guest, folder)
    entries = ((1, 7, 0xFFFFFFFF), (4, 5, 0xFFFFFFFF), (32, 5, 0xFFFFFFFF))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    body = SETXATTR_IN.pack(len(acl), 0, 0, 0) + names(b"system.posix_acl_access") + acl
    guest.call(Op.SETXATTR, file.nodeid, body)
    assert file.mode() == 0o6755


# Ids.


def test_each_request_has_its_own_ids(guest: Guest, folder: Folder) -> None:
    """Requests on one queue and on several, in an order that passes through every change of ids."""
    owners = [(0, 0), ALICE, ALICE, BOB, (0, 7), (5, 0), CAROL, (0, 0), BOB, (1002, 2001), ALICE]
    for queue in (lambda _: 1, lambda i: 1 + i % QUEUES):
        sub = folder.sub(guest, f"queue{queue(1)}")
        for i, ids in enumerate(owners):
            made = mkdir(guest, sub.nodeid, b"%d" % i, ids, queue=queue(i))
            assert (made.attr.uid, made.attr.gid) == ids
            st = (sub.path / f"{i}").stat()
            assert (st.st_uid, st.st_gid) == ids
            if i % 3 == 0:  # between them a request that the worker serves as root
                guest.ask(Op.LOOKUP, sub.nodeid, names(b"none"), queue=queue(i))


def test_an_op_of_root_after_one_of_a_user_is_roots(guest: Guest, folder: Folder) -> None:
    private = folder.sub(guest, "private", 0o700)
    for name in "xyz":
        (private.path / name).touch(0o600)
    x = guest.lookup(private.nodeid, b"x").nodeid
    # A file of root's that no other user may reach, after each kind of op that the worker does as
    # root.
    acts: list[Callable[[], object]] = [
        lambda: guest.lookup(private.nodeid, b"y"),
        lambda: guest.list(private.nodeid, plus=True),
        lambda: guest.call(Op.UNLINK, private.nodeid, names(b"y")),
        lambda: guest.call(Op.RENAME, private.nodeid, U64.pack(private.nodeid) + names(b"z", b"y")),
        lambda: guest.call(Op.LINK, private.nodeid, U64.pack(x) + names(b"z")),
        lambda: guest.open(x, os.O_RDWR | os.O_TRUNC),
        lambda: setattr_(guest, x, FATTR_MODE | FATTR_SIZE, mode=0o600),
        lambda: setattr_(guest, x, FATTR_UID | FATTR_GID, owner=BOB),
        lambda: guest.call(Op.SETXATTR, x, SETXATTR_IN.pack(1, 0, 0, 0) + names(b"user.a") + b"v"),
        lambda: mkdir(guest, private.nodeid, b"dir", (0, 0)),
        lambda: guest.call(Op.SYNCFS, private.nodeid, bytes(8)),
    ]
    for i, act in enumerate(acts):
        mkdir(guest, folder.nodeid, b"%d" % i, ALICE, 7, umask=0o777)
        act()


def test_access_is_the_users_and_changes_nothing(guest: Guest, folder: Folder) -> None:
    (folder.path / "x").write_text("x")
    os.chown(folder.path / "x", *CAROL)
    (folder.path / "x").chmod(0o640)
    x = guest.lookup(folder.nodeid, b"x").nodeid
    answers = []
    for ids in (CAROL, ALICE, (ALICE[0], CAROL[1]), (0, 0)):
        mkdir(guest, folder.nodeid, b"%d-%d" % ids, BOB)
        answers.append(guest.ask(Op.ACCESS, x, ACCESS_IN.pack(os.W_OK, 0), ids=ids).error)
        made = mkdir(guest, folder.nodeid, b"after %d-%d" % ids, BOB)
        assert (made.attr.uid, made.attr.gid) == BOB
    assert answers == [0, errno.EACCES, errno.EACCES, 0]
    expect(errno.EPERM, guest.ask(Op.ACCESS, x, ACCESS_IN.pack(os.R_OK, 0), ids=NOBODY_SAID))


@pytest.mark.parametrize("ids", [NOBODY_SAID, (0xFFFFFFFF, 0), (0, 0xFFFFFFFF)])
def test_nobody_creates_with_ids_that_are_none(
    guest: Guest, folder: Folder, ids: tuple[int, int]
) -> None:
    mkdir(guest, folder.nodeid, b"of-alice", ALICE)
    body = MKDIR_IN.pack(0o755, 0) + names(b"x")
    expect(errno.EPERM, guest.ask(Op.MKDIR, folder.nodeid, body, ids=ids))
    assert mkdir(guest, folder.nodeid, b"x", BOB).attr.owner == BOB


@pytest.fixture
def capable_program() -> Iterator[list[str]]:
    """The command for user 1000, with an interpreter whose file has the capabilities of a
    worker."""
    require("root")
    require("setcap")
    kept = ",".join(f"cap_{name.lower()}" for name in (*KEPT, "dac_read_search"))
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "python3")
        Path(folder).chmod(0o755)
        shutil.copy(os.path.realpath(sys.executable), python)
        subprocess.run(["setcap", f"{kept}=ep", python], check=True)
        paths = ":".join([str(ROOT_FOLDER), *filter(None, sys.path)])
        found = ["env", f"PYTHONHOME={sys.base_prefix}", f"PYTHONPATH={paths}", str(python)]
        ids = ["--reuid=1000", "--regid=1000", "--clear-groups"]
        yield ["setpriv", *ids, *found, "-m", "vfsd.virtiofsd"]


def test_capabilities_of_the_programs_file_are_as_good(capable_program: list[str]) -> None:
    with (
        Daemon("--sandbox=none", program=capable_program) as daemon,
        Frontend(daemon.socket).setup(1) as frontend,
    ):
        guest = Guest(frontend)
        guest.init()
        daemon.share.chmod(0o777)
        for i, ids in enumerate((ALICE, (0, 0), BOB, (1000, 1000))):
            assert mkdir(guest, ROOT, b"%d" % i, ids).attr.owner == ids


@in_each_mode
@pytest.mark.parametrize("lost", ["-setuid", "-setgid", "-setuid:-setgid"])
def test_a_switch_that_fails_half_way_fails_the_op_only(
    sandbox_mode: SandboxMode, lost: str, kept: int
) -> None:
    """Without these capabilities the worker can act for no other user, or only for a user's
    group."""
    with (
        Daemon(*OPTIONS, f"--modcaps={lost}", mode=sandbox_mode) as daemon,
        Frontend(daemon.socket).setup(1) as frontend,
    ):
        guest = Guest(frontend)
        guest.init(flags=LINUX_FLAGS & ~POSIX_ACL)
        daemon.share.chmod(0o777)
        body = MKDIR_IN.pack(0o755, 0) + names(b"no")
        for i in range(3):
            reply = guest.ask(Op.MKDIR, ROOT, body, ids=ALICE, extension=groups(5, 6))
            expect(errno.EPERM, reply)
            assert mkdir(guest, ROOT, b"%d" % i, (0, 0)).attr.owner == (0, 0)
            expect(errno.EPERM, guest.ask(Op.ACCESS, ROOT, ACCESS_IN.pack(4, 0), ids=BOB))
            file = set_id_file(guest, Folder(ROOT, daemon.share, b""), f"suid{i}")
            write(guest, file, (0, 0))
            assert file.mode() == 0o755 | kept
        assert not (daemon.share / "no").exists()


# Groups.


def test_several_groups_open_a_directory_for_one_request(guest: Guest, folder: Folder) -> None:
    assert guest.flags & CREATE_SUPP_GROUP
    grouped = folder.sub(guest, "grouped", 0o770, gid=5555)
    body = MKDIR_IN.pack(0o755, 0) + names(b"no")
    mkdir(guest, grouped.nodeid, b"a", ALICE, 1, 5555, 7)
    for ids, more in (
        (ALICE, ()), (BOB, ()), (ALICE, (5554,)), (CAROL, (1, 2, 3)), (ALICE, tuple(range(32))),
    ):  # fmt: skip
        extension = groups(*more) if more else b""
        expect(
            errno.EACCES,
            guest.ask(Op.MKDIR, grouped.nodeid, body, ids=ids, extension=extension),
        )
        mkdir(guest, grouped.nodeid, b"%d %d" % (*ids, len(more))[::2], ids, 5555)
    mkdir(guest, grouped.nodeid, b"most", BOB, *range(5555 - 31, 5556))


@pytest.mark.parametrize("bad", [33, 1 << 30, 0xFFFFFFFF])
def test_more_groups_than_there_are_is_an_error(guest: Guest, folder: Folder, bad: int) -> None:
    body = MKDIR_IN.pack(0o755, 0) + names(b"x")
    extension = struct.pack("<IIII", 16, EXT_GROUPS, bad, 5)
    expect(errno.EINVAL, guest.ask(Op.MKDIR, folder.nodeid, body, ids=ALICE, extension=extension))
    expect(
        errno.EPERM,
        guest.ask(Op.MKDIR, folder.nodeid, body, ids=ALICE, extension=groups(0xFFFFFFFF)),
    )


def test_a_set_gid_directory_gives_its_group(guest: Guest, folder: Folder) -> None:
    shared = folder.sub(guest, "shared", 0o2777, gid=5555)
    made = mkdir(guest, shared.nodeid, b"dir", ALICE, mode=0o750)
    assert (made.attr.mode, made.attr.gid) == (0o42750, 5555)
    entry, _ = create(guest, shared.nodeid, b"file", 0o640, ALICE)
    assert (entry.attr.mode, entry.attr.gid) == (0o100640, 5555)


@pytest.mark.parametrize("op", [Op.CREATE, Op.MKNOD, Op.TMPFILE])
def test_who_is_not_in_the_group_makes_no_set_gid_file(
    guest: Guest, folder: Folder, op: Op
) -> None:
    """CVE-2022-0358; and no request that ran before makes a difference."""
    shared = folder.sub(guest, "shared", 0o2777, gid=5555)

    def mode(name: bytes, ids: tuple[int, int], *gids: int) -> int:
        if op != Op.MKNOD:
            entry = create(guest, shared.nodeid, name, 0o2755, ids, *gids, op=op)[0]
        else:
            body = MKNOD_IN.pack(stat.S_IFREG | 0o2755, 0, 0, 0) + names(name)
            extension = groups(*gids) if gids else b""
            data = guest.call(op, shared.nodeid, body, ids=ids, extension=extension)
            entry = Entry.parse(data)
        return stat.S_IMODE(entry.attr.mode)

    file = set_id_file(guest, folder, "suid", os.O_DSYNC)
    assert mode(b"root", (0, 0)) == 0o2755
    assert mode(b"alice", ALICE) == 0o755
    assert mode(b"member", ALICE, 5555) == 0o2755
    assert mode(b"alice again", ALICE) == 0o755
    write(guest, file, ALICE, KILL_SUIDGID)
    assert mode(b"alice, after a write", ALICE) == 0o755
    write(guest, file, BOB, KILL_SUIDGID)
    assert mode(b"root, after a write", (0, 0)) == 0o2755
    assert mode(b"bob", BOB) == 0o755


def test_a_guest_that_cannot_say_its_groups_is_believed(guest: Guest, folder: Folder) -> None:
    """Linux before 6.3 sends no groups, and no version of Linux sends a group that counts only
    through an ACL; the guest's kernel has checked the access. The file still belongs to the user,
    and ACCESS is strict."""
    body = MKDIR_IN.pack(0o755, 0) + names(b"x")
    silent = (LINUX_FLAGS & ~CREATE_SUPP_GROUP, LINUX_FLAGS)
    for i, flags in enumerate((LINUX_FLAGS & ~POSIX_ACL, *silent, LINUX_FLAGS & ~POSIX_ACL)):
        guest.init(flags=flags)
        parent = Folder(guest.lookup(ROOT, folder.name).nodeid, folder.path, folder.name)
        closed = parent.sub(guest, f"closed{i}", 0o770, gid=5555)
        mkdir(guest, parent.nodeid, b"open%d" % i, BOB)
        if flags not in silent:
            expect(errno.EACCES, guest.ask(Op.MKDIR, closed.nodeid, body, ids=BOB))
            continue
        made = mkdir(guest, closed.nodeid, b"x", BOB)
        assert made.attr.owner == BOB
        access = ACCESS_IN.pack(os.W_OK, 0)
        expect(errno.EACCES, guest.ask(Op.ACCESS, closed.nodeid, access, ids=BOB))
        mkdir(guest, closed.nodeid, b"y", BOB)
        shared = parent.sub(guest, f"shared{i}", 0o2770, gid=5555)
        entry, _ = create(guest, shared.nodeid, b"z", 0o2755, BOB)
        assert (entry.attr.mode, entry.attr.uid, entry.attr.gid) == (0o100755, BOB[0], 5555)


# umask, sticky directories.


def test_the_umask_is_the_requests_own(guest: Guest, folder: Folder) -> None:
    modes = []
    for i, umask in enumerate((0o77, 0, 0o22, 0o7777, 0)):
        made = mkdir(guest, folder.nodeid, b"d%d" % i, ALICE, mode=0o777, umask=umask)
        entry, _ = create(guest, folder.nodeid, b"f%d" % i, 0o666, BOB, umask=umask ^ 0o22)
        node = guest.call(
            Op.MKNOD, folder.nodeid, MKNOD_IN.pack(0o100666, 0, umask, 0) + names(b"n%d" % i)
        )
        modes.append((made.attr.mode, entry.attr.mode, Entry.parse(node).attr.mode))
        assert guest.call(Op.SYMLINK, folder.nodeid, names(b"l%d" % i, b"t"))
    assert [tuple(map(stat.S_IMODE, three)) for three in modes] == [
        (0o700, 0o622, 0o600), (0o777, 0o644, 0o666), (0o755, 0o666, 0o644), (0, 0o22, 0),
        (0o777, 0o644, 0o666),
    ]  # fmt: skip


def test_a_guest_that_applies_its_umask_gets_the_mode_it_says(guest: Guest, folder: Folder) -> None:
    mkdir(guest, folder.nodeid, b"with", ALICE, umask=0o77)
    guest.init(flags=LINUX_FLAGS & ~DONT_MASK)
    parent = guest.lookup(ROOT, folder.name).nodeid
    assert mkdir(guest, parent, b"x", ALICE, mode=0o777, umask=0o77).attr.mode == 0o40777


def test_a_sticky_directory_is_the_guests_to_guard(guest: Guest, folder: Folder) -> None:
    sticky = folder.sub(guest, "sticky", 0o1777)
    made = mkdir(guest, sticky.nodeid, b"alice", ALICE, mode=0o1777)
    assert made.attr.mode == 0o41777
    guest.call(Op.RMDIR, sticky.nodeid, names(b"alice"), ids=BOB)


# The thread pool.


def test_threads_are_root_whoever_they_were_started_for(
    guest: Guest, daemon: Daemon, folder: Folder, sandbox_mode: SandboxMode
) -> None:
    """A thread inherits the ids that its creator has at that moment."""
    for i in range(10):
        entry, fh = create(guest, folder.nodeid, b"%d" % i, 0o600, ALICE, 7, 8)
        guest.call(Op.FSYNC, entry.nodeid, FSYNC_IN.pack(fh, 0, 0), ids=ALICE)
        mkdir(guest, folder.nodeid, b"d%d" % i, BOB, 7)
        guest.release(entry.nodeid, fh)
    pid = daemon.the("worker", "queue 1")
    for task in Path(f"/proc/{pid}/task").iterdir():
        if task.name != str(pid):
            wait_until(
                partial(is_root, task, sandbox_mode.uid or 0), 2, f"thread {task.name} is root"
            )


def is_root(task: Path, root: int) -> bool:
    """A thread may lack one capability, FSETID, which each request sets as it needs."""
    found = status(task)
    saved = found["Uid"].split()[2]  # the user id of the supervisor
    ids = {"Uid": f"{root} {root} {saved} {root}", "Gid": " ".join([str(root)] * 4), "Groups": ""}
    capabilities = int(found["CapEff"], 16) | CAP_FSETID
    return found | ids == found and capabilities == int(found["CapPrm"], 16)


def status(task: Path) -> dict[str, str]:
    lines = (task / "status").read_text().splitlines()
    return {
        key: " ".join(value.split()) for key, _, value in (line.partition(":") for line in lines)
    }


@pytest.mark.parametrize("valid", [0, FATTR_CTIME])
def test_chown_of_nothing_drops_set_id_bits(guest: Guest, folder: Folder, valid: int) -> None:
    """FATTR_CTIME comes with --writeback."""
    file, _ = guest.create(folder.nodeid, b"file")
    setattr_(guest, file.nodeid, FATTR_MODE, mode=0o6755)
    setattr_(guest, file.nodeid, valid)
    assert guest.getattr(file.nodeid).mode & 0o7777 == 0o755
