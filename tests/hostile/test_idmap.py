# SPDX-License-Identifier: Apache-2.0
"""--translate-uid and --translate-gid, as a guest sees them and as the host does."""

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox_modes import USER, SandboxMode, unprivileged

from .conftest import OPTIONS, Folder
from .daemon import Daemon
from .driver import Frontend
from .fuse import (
    ACCESS_IN,
    CREATE_IN,
    FATTR_GID,
    FATTR_MODE,
    FATTR_UID,
    MKDIR_IN,
    MKNOD_IN,
    ROOT,
    SETATTR_IN,
    STATX_IN,
    Attr,
    Entry,
    Guest,
    Op,
    expect,
    names,
)
from .test_credentials import create, groups, mkdir, setattr_

NO_ID = 0xFFFFFFFF
RULES = (
    "--translate-uid=squash-guest:0:10000:1",  # guest root has this id on the host …
    "--translate-uid=host:10000:0:1",  # … and the guest is shown it as root
    "--translate-uid=map:1000:20000:10",
    "--translate-uid=forbid-guest:2000:1000",
    "--translate-uid=squash-host:50000:65534:1000",
    "--translate-gid=map:0:10001:1",
    "--translate-gid=map:1000:30000:10",
    "--translate-gid=map:5000:0:1",
    "--translate-gid=forbid-guest:2000:1000",
)
# The id in the guest's request, the id on the host, the id that the guest is shown.
OWNERS = [
    ((0, 0), (10000, 10001), (0, 0)),
    ((1000, 1000), (20000, 30000), (1000, 1000)),
    ((1009, 1009), (20009, 30009), (1009, 1009)),
    ((1010, 1010), (1010, 1010), (1010, 1010)),
    ((999, 5000), (999, 0), (999, 5000)),
    ((20000, 30000), (20000, 30000), (1000, 1000)),
]
FORBIDDEN = [(2000, 1000), (1000, 2999), (2500, 2500)]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(*OPTIONS, *RULES) as running:
        running.share.chmod(0o777)
        yield running


def owner(path: Path) -> tuple[int, int]:
    st = path.lstat()
    return st.st_uid, st.st_gid


@pytest.mark.parametrize(("says", "host", "shown"), OWNERS)
def test_what_is_created_has_the_hosts_ids(
    guest: Guest,
    folder: Folder,
    says: tuple[int, int],
    host: tuple[int, int],
    shown: tuple[int, int],
) -> None:
    node = MKNOD_IN.pack(0o100600, 0, 0, 0) + names(b"node")
    made = {
        "dir": mkdir(guest, folder.nodeid, b"dir", says),
        "file": create(guest, folder.nodeid, b"file", 0o600, says)[0],
        "node": Entry.parse(guest.call(Op.MKNOD, folder.nodeid, node, ids=says)),
        "link": Entry.parse(guest.call(Op.SYMLINK, folder.nodeid, names(b"link", b"t"), ids=says)),
    }
    for name, entry in made.items():
        assert owner(folder.path / name) == host
        assert entry.attr.owner == shown
    hidden, _ = create(guest, folder.nodeid, b"#tmp", 0o600, says, op=Op.TMPFILE)
    assert hidden.attr.owner == shown


def test_every_reply_shows_the_guests_ids(guest: Guest, folder: Folder) -> None:
    path = folder.path / "x"
    path.touch()
    for uid, gid, shown in (
        (20003, 30004, (1003, 1004)), (10000, 10001, (0, 0)), (0, 0, (0, 5000)),
        (50999, 50999, (65534, 50999)), (2000, 2000, (2000, 2000)),
    ):  # fmt: skip
        os.chown(path, uid, gid)
        x = guest.lookup(folder.nodeid, b"x")
        assert x.attr.owner == shown
        assert guest.getattr(x.nodeid)[11:13] == shown
        statx = guest.call(Op.STATX, x.nodeid, STATX_IN.pack(0, 0, 0, 0, 0x7FF), room=288)
        assert struct.unpack_from("<II", statx, 32 + 20) == shown
        (listed,) = [d for d in guest.list(folder.nodeid, plus=True) if d.name == b"x"]
        assert listed.entry is not None
        assert listed.entry.attr.owner == shown
        body = SETATTR_IN.pack(FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o644, 0, 0, 0, 0)
        reply = guest.call(Op.SETATTR, x.nodeid, body, room=104)
        assert Attr(*struct.unpack_from("<QQQQQQIIIIIIIIII", reply, 16))[11:13] == shown
        body = CREATE_IN.pack(os.O_CREAT | os.O_RDWR, 0o100600, 0, 0) + names(b"x")
        existing = guest.call(Op.CREATE, folder.nodeid, body, room=144)
        assert Entry.parse(existing).attr.owner == shown


@pytest.mark.parametrize(("says", "host", "shown"), OWNERS)
def test_chown_sets_the_hosts_ids(
    guest: Guest,
    folder: Folder,
    says: tuple[int, int],
    host: tuple[int, int],
    shown: tuple[int, int],
) -> None:
    made = mkdir(guest, folder.nodeid, b"dir", (7, 7))
    setattr_(guest, made.nodeid, FATTR_UID, owner=says)
    assert owner(folder.path / "dir") == (host[0], 7)
    setattr_(guest, made.nodeid, FATTR_GID, owner=says)
    assert owner(folder.path / "dir") == host
    assert guest.getattr(made.nodeid)[11:13] == shown


@pytest.mark.parametrize("ids", FORBIDDEN)
def test_a_forbidden_id_is_eperm(guest: Guest, folder: Folder, ids: tuple[int, int]) -> None:
    x = mkdir(guest, folder.nodeid, b"x", (1000, 1000), mode=0o777).nodeid
    create_body = CREATE_IN.pack(os.O_CREAT | os.O_RDWR, 0o100644, 0, 0) + names(b"no")
    for op, body in (
        (Op.MKDIR, MKDIR_IN.pack(0o755, 0) + names(b"no")),
        (Op.MKNOD, MKNOD_IN.pack(0o100644, 0, 0, 0) + names(b"no")),
        (Op.SYMLINK, names(b"no", b"t")),
        (Op.CREATE, create_body),
        (Op.TMPFILE, create_body),
        (Op.ACCESS, ACCESS_IN.pack(os.R_OK, 0)),
    ):
        expect(errno.EPERM, guest.ask(op, x, body, ids=ids))
    body = SETATTR_IN.pack(
        FATTR_UID | FATTR_GID, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, *ids, 0
    )  # fmt: skip
    expect(errno.EPERM, guest.ask(Op.SETATTR, x, body))
    assert owner(folder.path / "x") == (20000, 30000)
    assert list((folder.path / "x").iterdir()) == []
    # The daemon does these ops as root, on the guest kernel's word, so the ids of the request are
    # not looked at.
    guest.call(Op.RMDIR, folder.nodeid, names(b"x"), ids=ids)


def test_a_forbidden_group_is_eperm(guest: Guest, folder: Folder) -> None:
    body = MKDIR_IN.pack(0o755, 0) + names(b"no")
    for gids in ((2000,), (1, 2999, 3)):
        reply = guest.ask(Op.MKDIR, folder.nodeid, body, ids=(1000, 1000), extension=groups(*gids))
        expect(errno.EPERM, reply)
    mkdir(guest, folder.nodeid, b"yes", (1000, 1000), 1999, 3000)


@pytest.mark.parametrize("owner_of", [FATTR_UID, FATTR_GID])
def test_no_id_is_still_no_id(guest: Guest, folder: Folder, owner_of: int) -> None:
    x = mkdir(guest, folder.nodeid, b"x", (1000, 1000)).nodeid
    body = SETATTR_IN.pack(owner_of, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NO_ID, NO_ID, 0)
    expect(errno.EINVAL, guest.ask(Op.SETATTR, x, body))
    body = MKDIR_IN.pack(0o755, 0) + names(b"no")
    expect(errno.EPERM, guest.ask(Op.MKDIR, folder.nodeid, body, ids=(NO_ID, NO_ID)))


def test_supplementary_groups_are_translated(guest: Guest, folder: Folder) -> None:
    guest.init(flags=0x7BFFFFFB & ~(1 << 20) | 0x1FF << 32)
    parent = Folder(guest.lookup(ROOT, folder.name).nodeid, folder.path, folder.name)
    grouped = parent.sub(guest, "grouped", 0o2770, gid=30007)
    body = MKDIR_IN.pack(0o755, 0) + names(b"no")
    for gids in ((), (30006,), (1006,)):
        extension = groups(*gids) if gids else b""
        reply = guest.ask(Op.MKDIR, grouped.nodeid, body, ids=(1001, 1001), extension=extension)
        expect(errno.EACCES, reply)
    made = mkdir(guest, grouped.nodeid, b"yes", (1001, 1001), 1007)
    assert owner(grouped.path / "yes") == (20001, 30007)
    assert made.attr.owner == (1001, 1007)


def test_access_is_what_the_hosts_user_may(guest: Guest, folder: Folder) -> None:
    path = folder.path / "x"
    path.touch(0o600)
    os.chown(path, 20000, 0)
    path.chmod(0o600)
    x = guest.lookup(folder.nodeid, b"x").nodeid
    access = ACCESS_IN.pack(os.W_OK, 0)
    assert guest.ask(Op.ACCESS, x, access, ids=(1000, 1000)).error == 0
    for ids in ((1001, 1000), (0, 0)):  # guest root is squashed
        expect(errno.EACCES, guest.ask(Op.ACCESS, x, access, ids=ids))


def test_a_squashed_root_has_roots_powers_where_it_needs_no_id(
    guest: Guest, folder: Folder
) -> None:
    made = mkdir(guest, folder.nodeid, b"x", (1000, 1000))
    setattr_(guest, made.nodeid, FATTR_UID | FATTR_GID, owner=(0, 0))
    assert owner(folder.path / "x") == (10000, 10001)
    device = MKNOD_IN.pack(0o020600, os.makedev(1, 3), 0, 0) + names(b"null")
    expect(errno.EPERM, guest.ask(Op.MKNOD, folder.nodeid, device))


@unprivileged
@pytest.mark.parametrize(
    ("rules", "ids", "shown"),
    [
        ("map:1000:{own}:1", (1000, 1000), 1000),
        ("squash-guest:0:0:4294967295", (1234, 4321), None),
    ],
)
def test_an_unprivileged_daemon_translates_to_its_user(
    sandbox_mode: SandboxMode, rules: str, ids: tuple[int, int], shown: int | None
) -> None:
    own = sandbox_mode.own_id
    rule = rules.format(own=own)
    options = (f"--translate-uid={rule}", f"--translate-gid={rule}")
    with (
        Daemon(*OPTIONS, *options, mode=sandbox_mode) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init()
        made = mkdir(guest, ROOT, b"x", ids)
        assert owner(daemon.share / "x") == (USER, USER)
        assert made.attr.owner == (own if shown is None else shown,) * 2
        setattr_(guest, made.nodeid, FATTR_UID | FATTR_GID, owner=ids)
        assert guest.ask(Op.ACCESS, made.nodeid, ACCESS_IN.pack(os.W_OK, 0), ids=ids).error == 0


def test_who_is_root_on_the_host_only_makes_no_set_gid_file() -> None:
    """The host's root has CAP_FSETID, but the guest's user does not."""
    rules = ("--translate-uid=map:1000:0:1", "--translate-gid=map:1000:0:1")
    with Daemon(*OPTIONS, *rules) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        root = Folder(ROOT, daemon.share, b"")
        shared = root.sub(guest, "shared", 0o2777, gid=5555)
        mode = create(guest, shared.nodeid, b"x", 0o2755, (1000, 1000))[0].attr.mode
        assert mode == 0o100755
        mode = create(guest, shared.nodeid, b"y", 0o2755, (1000, 1000), 5555)[0].attr.mode
        assert mode == 0o102755
