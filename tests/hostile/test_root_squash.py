# SPDX-License-Identifier: Apache-2.0
"""A share whose server refuses root what it allows a user, as NFS with root_squash does."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .daemon import Daemon
from .driver import Frontend
from .fuse import (
    FATTR_MODE,
    LINUX_FLAGS,
    MKNOD_IN,
    OPEN_IN,
    OPEN_OUT,
    ROOT,
    SETATTR_IN,
    Entry,
    Guest,
    Op,
    expect,
    names,
)
from .fuse_server import FlatFileSystem, served
from .test_label import LABEL, SECURITY_CTX

OWNER = (1000, 1000)
OTHER = (1001, 1001)
NO_IDS = (2**32 - 1, 2**32 - 1)  # the ids of a guest with ALLOW_IDMAP, except in ops that create
ALLOW_IDMAP = 1 << 40
# Ops that only the owner of a file may do, with the server's answer to any other user.
OWNERS = {
    Op.LOOKUP: errno.EACCES,
    Op.OPEN: errno.EACCES,
    Op.UNLINK: errno.EACCES,
    Op.RENAME2: errno.EACCES,
    Op.SETATTR: errno.EPERM,
}
NEW_DIR = ROOT.to_bytes(8, "little")
CHMOD = SETATTR_IN.pack(FATTR_MODE, *[0] * 7, 0, 0, 0, 0o600, 0, 0, 0, 0)


class OwnersFileSystem(FlatFileSystem):
    """Files that only their owner may use."""

    def judge(self, opcode: int, uid: int) -> None:
        if opcode in OWNERS and uid != OWNER[0]:
            raise OSError(OWNERS[Op(opcode)], "for the owner only")


@pytest.fixture
def files() -> dict[bytes, bytes]:
    return {b"old": b"content", b"other": b""}


@pytest.fixture
def share(tmp_path: Path, files: dict[bytes, bytes]) -> Iterator[Path]:
    with served(OwnersFileSystem(files, lambda n: n), tmp_path / "mnt") as mounted:
        yield mounted


@pytest.fixture
def guest(share: Path) -> Iterator[Guest]:
    with Daemon(share=share) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        yield guest


def look_up(guest: Guest, name: bytes) -> int:
    data = guest.call(Op.LOOKUP, ROOT, names(name), room=128, ids=OWNER)
    return Entry.parse(data).nodeid


def test_the_owner_may_do_all(guest: Guest, files: dict[bytes, bytes]) -> None:
    nodeid = look_up(guest, b"old")
    body = OPEN_IN.pack(os.O_RDONLY, 0)
    data = guest.call(Op.OPEN, nodeid, body, room=16, ids=OWNER)
    fh = int(OPEN_OUT.unpack(data)[0])
    assert guest.read(nodeid, fh, 0, 99) == b"content"
    guest.release(nodeid, fh)
    guest.call(Op.SETATTR, nodeid, CHMOD, room=104, ids=OWNER)
    guest.call(Op.RENAME, ROOT, NEW_DIR + names(b"old", b"new"), ids=OWNER)
    assert set(files) == {b"new", b"other"}
    guest.call(Op.UNLINK, ROOT, names(b"new"), ids=OWNER)
    assert set(files) == {b"other"}


@pytest.mark.parametrize("ids", [(0, 0), OTHER, NO_IDS])
def test_nobody_else_may(guest: Guest, files: dict[bytes, bytes], ids: tuple[int, int]) -> None:
    nodeid = look_up(guest, b"old")
    for op, node, body, error in (
        (Op.LOOKUP, ROOT, names(b"other"), errno.EACCES),
        (Op.OPEN, nodeid, OPEN_IN.pack(os.O_RDONLY, 0), errno.EACCES),
        (Op.SETATTR, nodeid, CHMOD, errno.EPERM),
        (Op.RENAME, ROOT, NEW_DIR + names(b"old", b"new"), errno.EACCES),
        (Op.UNLINK, ROOT, names(b"old"), errno.EACCES),
    ):
        expect(error, guest.ask(op, node, body, ids=ids))
    assert set(files) == {b"old", b"other"}


def test_who_asked_last_lends_nobody_the_right(guest: Guest) -> None:
    """A request is judged by its own user, whatever the user of the request before was allowed."""
    for _ in range(3):
        look_up(guest, b"old")
        expect(errno.EACCES, guest.ask(Op.LOOKUP, ROOT, names(b"other"), room=128, ids=OTHER))
        expect(errno.EACCES, guest.ask(Op.LOOKUP, ROOT, names(b"other"), room=128))


@pytest.mark.parametrize(("options", "agreed"), [((), False), (("--idmapped-mounts",), True)])
def test_the_guest_reports_its_users_unless_an_option_forbids_it(
    options: tuple[str, ...], agreed: bool, share: Path
) -> None:
    with Daemon(*options, share=share) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        assert bool(guest.init().flags2 << 32 & ALLOW_IDMAP) == agreed


class MakersFileSystem(OwnersFileSystem):
    """The same for making and labelling files. RENAME_NOREPLACE may be unknown, as on NFS."""

    renames = True

    def judge(self, opcode: int, uid: int) -> None:
        super().judge(opcode, uid)
        if opcode in (Op.MKNOD, Op.SETXATTR) and uid != OWNER[0]:
            raise OSError(errno.EACCES, "for the owner only")
        if opcode == Op.RENAME2 and not self.renames:
            raise OSError(errno.EINVAL, "flags")


@pytest.mark.parametrize("renames", [True, False])
def test_a_labelled_file_is_made_or_leaves_nothing(
    renames: bool, tmp_path: Path, files: dict[bytes, bytes]
) -> None:
    file_system = MakersFileSystem(files, lambda n: n)
    file_system.renames = renames
    options = ("--security-label", "--xattrmap=:map:security.:user.v.:")
    with (
        served(file_system, tmp_path / "mnt") as share,
        Daemon(*options, share=share) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init(flags=LINUX_FLAGS)
        assert guest.flags & SECURITY_CTX
        body = MKNOD_IN.pack(0o100666, 0, 0, 0) + names(b"new")
        answer = guest.ask(Op.MKNOD, ROOT, body, room=128, ids=OWNER, extension=LABEL)
        expect(0 if renames else errno.EOPNOTSUPP, answer)
        assert set(files) == {b"old", b"other"} | ({b"new"} if renames else set())


class MembersFileSystem(FlatFileSystem):
    """Files that only members of their group, 0, may open."""

    def judge(self, opcode: int, uid: int) -> None:
        if opcode != Op.OPEN:
            return
        status = Path(f"/proc/{self.pid}/status").read_text()
        groups = status.split("\nGroups:", 1)[1].split("\n", 1)[0].split()
        if uid != OTHER[0] or "0" not in groups:
            raise OSError(errno.EACCES, "for members only")


@pytest.mark.parametrize(
    ("options", "may"), [((), True), (("--translate-gid=squash-guest:0:1001:65536",), False)]
)
def test_no_group_that_the_guest_cannot_have_is_used(
    options: tuple[str, ...], may: bool, tmp_path: Path
) -> None:
    file_system = MembersFileSystem({b"old": b"content"}, lambda n: n)
    with (
        served(file_system, tmp_path / "mnt") as share,
        Daemon(*options, share=share) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init()
        nodeid = look_up(guest, b"old")
        answer = guest.ask(Op.OPEN, nodeid, OPEN_IN.pack(os.O_RDONLY, 0), room=16, ids=OTHER)
        expect(0 if may else errno.EACCES, answer)
