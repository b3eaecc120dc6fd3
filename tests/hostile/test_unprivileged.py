# SPDX-License-Identifier: Apache-2.0
"""A daemon of an ordinary user: guest root is that user, and there is no other user."""

import errno
import os

import pytest

from tests.sandbox_modes import USER, SandboxMode, unprivileged

from .conftest import Folder
from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import (
    ACCESS_IN,
    FATTR_GID,
    FATTR_UID,
    MKDIR_IN,
    MKNOD_IN,
    ROOT,
    SETATTR_IN,
    Guest,
    Op,
    expect,
    names,
)
from .test_credentials import (
    KILL_SUIDGID,
    SetId,
    create,
    groups,
    mkdir,
    setattr_,
    write,
)

OVERFLOW = 65534

pytestmark = unprivileged


@pytest.fixture
def own(sandbox_mode: SandboxMode) -> int:
    return sandbox_mode.own_id


def test_guest_root_is_the_daemons_user(guest: Guest, folder: Folder, own: int) -> None:
    for name, made in (
        ("dir", mkdir(guest, folder.nodeid, b"dir", (0, 0))),
        ("file", create(guest, folder.nodeid, b"file", 0o2751, (0, 0))[0]),
    ):
        st = (folder.path / name).stat()
        assert (st.st_uid, st.st_gid) == (USER, USER)
        assert (made.attr.uid, made.attr.gid) == (own, own)
        assert guest.lookup(folder.nodeid, name.encode()).attr.uid == own
    assert (folder.path / "file").stat().st_mode == 0o102751


def test_the_daemons_own_ids_are_good_where_they_exist(
    guest: Guest, folder: Folder, own: int
) -> None:
    assert mkdir(guest, folder.nodeid, b"x", (own, own)).attr.uid == own


@pytest.mark.parametrize("ids", [(1234, 0), (0, 1234), (1234, 1234), (0xFFFFFFFF, 0)])
def test_nobody_else_creates(guest: Guest, folder: Folder, ids: tuple[int, int]) -> None:
    body = MKDIR_IN.pack(0o755, 0) + names(b"x")
    expect(errno.EPERM, guest.ask(Op.MKDIR, folder.nodeid, body, ids=ids))
    access = ACCESS_IN.pack(os.R_OK, 0)
    expect(errno.EPERM, guest.ask(Op.ACCESS, folder.nodeid, access, ids=ids))
    mkdir(guest, folder.nodeid, b"x", (0, 0))


@pytest.mark.parametrize("op", [Op.MKDIR, Op.SETATTR])
def test_the_first_refusal_names_cause_and_cure(
    sandbox_mode: SandboxMode, own: int, op: Op
) -> None:
    body = MKDIR_IN.pack(0o755, 0) + names(b"x")
    if op == Op.SETATTR:
        body = SETATTR_IN.pack(FATTR_UID, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1234, 0, 0)
    with Daemon(mode=sandbox_mode) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.call(Op.MKDIR, ROOT, MKDIR_IN.pack(0o755, 0) + names(b"own"))
        assert "EPERM" not in daemon.log.read_text()
        for _ in range(2):
            expect(errno.EPERM, guest.ask(op, ROOT, body, ids=(1234, 5)))
        cure = f"--translate-uid=squash-guest:0:{own}:65536"
        wait_until(lambda: cure in daemon.log.read_text(), 10, "a line with the cure")
        guest.lookup(ROOT, b"own")
        text = daemon.log.read_text()
        assert f"EPERM as user 1234 with group {5 if op == Op.MKDIR else 0}" in text
        assert text.count(cure) == 1


def test_groups_of_guest_root_do_not_matter(guest: Guest, folder: Folder) -> None:
    mkdir(guest, folder.nodeid, b"x", (0, 0), 4, 24)
    body = MKDIR_IN.pack(0o755, 0) + names(b"y")
    none = groups(0xFFFFFFFF)
    expect(errno.EPERM, guest.ask(Op.MKDIR, folder.nodeid, body, extension=none))


def test_files_are_given_to_nobody_else(guest: Guest, folder: Folder, own: int) -> None:
    made = mkdir(guest, folder.nodeid, b"x", (0, 0))
    setattr_(guest, made.nodeid, FATTR_UID | FATTR_GID, owner=(0, 0))
    setattr_(guest, made.nodeid, FATTR_UID | FATTR_GID, owner=(own, own))
    assert (folder.path / "x").stat().st_uid == USER
    for valid in (FATTR_UID, FATTR_GID):
        body = SETATTR_IN.pack(valid, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1234, 1234, 0)
        expect(errno.EPERM, guest.ask(Op.SETATTR, made.nodeid, body))


def test_what_others_own_on_the_host_is_theirs(
    guest: Guest, folder: Folder, sandbox_mode: SandboxMode
) -> None:
    theirs = folder.path / "theirs"
    theirs.touch(0o644)
    os.chown(theirs, 4321, 4321)
    entry = guest.lookup(folder.nodeid, b"theirs")
    shown = OVERFLOW if sandbox_mode.has_user_namespace else 4321
    assert (entry.attr.uid, entry.attr.gid) == (shown, shown)
    guest.open(entry.nodeid, os.O_RDONLY)
    with pytest.raises(PermissionError):
        guest.open(entry.nodeid, os.O_WRONLY)


def test_no_devices(guest: Guest, folder: Folder) -> None:
    body = MKNOD_IN.pack(0o020600, os.makedev(1, 3), 0, 0) + names(b"null")
    expect(errno.EPERM, guest.ask(Op.MKNOD, folder.nodeid, body))


def test_set_id_bits_go_when_the_user_writes(guest: Guest, folder: Folder) -> None:
    entry, fh = create(guest, folder.nodeid, b"file", 0o6755, (0, 0))
    file = SetId(entry.nodeid, fh, folder.path / "file")
    write(guest, file, (0, 0), KILL_SUIDGID)
    assert file.mode() == 0o755
