# SPDX-License-Identifier: Apache-2.0
"""--xattrmap as a guest sees it; the remapped security.capability goes when the file changes."""

import errno
import os
import time
from collections.abc import Iterator

import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode

from .conftest import Folder
from .daemon import Daemon
from .fuse import (
    COPY_IN,
    CREATE_IN,
    FALLOCATE_IN,
    GETXATTR_IN,
    LINUX_FLAGS,
    OPEN_IN,
    SETATTR_IN,
    SETXATTR_EXT,
    SETXATTR_IN,
    Guest,
    Op,
    Reply,
    expect,
    names,
    write_in,
)

pytestmark = in_each_mode

RULES = """
  :map:security.capability:user.v.:
"""
MIXED = (
    ":bad:client:user.secret.:: :unsupported:all:user.odd.:user.odd.: :ok:all:user.:user.: "
    "=prefix=client==user.a,b.= =prefix=server==user.a,b.= :bad:all:::"
)
POSIX_ACL = 1 << 20
CAP = b"security.capability"
HOST_CAP = "user.v.security.capability"
VALUE = bytes.fromhex("01000002002000000000000000000000" + "00000000")


@pytest.fixture(scope="module", params=[RULES])
def daemon(request: pytest.FixtureRequest, sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    rules = f"--xattrmap={request.param}"
    with Daemon("--keep-listening", rules, mode=sandbox_mode) as running:
        yield running


def set_xattr(guest: Guest, nodeid: int, name: bytes, value: bytes = b"v", queue: int = 1) -> Reply:
    body = SETXATTR_IN.pack(len(value), 0, 0, 0) + names(name) + value
    assert guest.flags & SETXATTR_EXT
    return guest.ask(Op.SETXATTR, nodeid, body, queue=queue)


def get_xattr(guest: Guest, nodeid: int, name: bytes) -> Reply:
    return guest.ask(Op.GETXATTR, nodeid, GETXATTR_IN.pack(4096, 0) + names(name))


def list_xattrs(guest: Guest, nodeid: int) -> set[bytes]:
    got = guest.call(Op.LISTXATTR, nodeid, GETXATTR_IN.pack(4096, 0))
    size = guest.call(Op.LISTXATTR, nodeid, GETXATTR_IN.pack(0, 0), room=8)
    assert GETXATTR_IN.unpack(size)[0] >= len(got)
    return set(got.split(b"\0")) - {b""}


def test_a_mapped_name_is_another_one_on_the_host(guest: Guest, folder: Folder) -> None:
    path = folder.path / "x"
    path.touch()
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    assert set_xattr(guest, nodeid, CAP, VALUE).error == 0
    assert set_xattr(guest, nodeid, b"user.plain").error == 0
    assert set(os.listxattr(path)) == {HOST_CAP, "user.plain"}
    assert get_xattr(guest, nodeid, CAP) == Reply(0, VALUE)
    assert list_xattrs(guest, nodeid) == {CAP, b"user.plain"}
    # The guest can use neither this attribute nor any other by the host's name.
    expect(errno.EPERM, set_xattr(guest, nodeid, HOST_CAP.encode()))
    expect(errno.EPERM, guest.ask(Op.REMOVEXATTR, nodeid, names(HOST_CAP.encode())))
    expect(errno.ENODATA, get_xattr(guest, nodeid, HOST_CAP.encode()))
    assert guest.ask(Op.REMOVEXATTR, nodeid, names(CAP)).error == 0
    assert os.listxattr(path) == ["user.plain"]


def test_a_real_capability_of_the_host_is_hidden(guest: Guest, folder: Folder) -> None:
    (folder.path / "x").touch()
    os.setxattr(folder.path / "x", "security.capability", VALUE)
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    assert list_xattrs(guest, nodeid) == set()
    expect(errno.ENODATA, get_xattr(guest, nodeid, CAP))


@pytest.mark.parametrize("daemon", [MIXED], indirect=True, ids=["mixed"])
def test_each_type_of_rule(guest: Guest, folder: Folder) -> None:
    path = folder.path / "x"
    path.touch()
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    assert set_xattr(guest, nodeid, b"user.ok").error == 0
    assert set_xattr(guest, nodeid, b"trusted.t").error == 0
    expect(errno.EPERM, set_xattr(guest, nodeid, b"user.secret.x"))
    expect(errno.ENODATA, get_xattr(guest, nodeid, b"user.secret.x"))
    expect(errno.EPERM, guest.ask(Op.REMOVEXATTR, nodeid, names(b"user.secret.x")))
    expect(errno.EOPNOTSUPP, set_xattr(guest, nodeid, b"user.odd.x"))
    expect(errno.EOPNOTSUPP, get_xattr(guest, nodeid, b"user.odd.x"))
    assert set(os.listxattr(path)) == {"user.ok", "user.a,b.trusted.t"}
    os.setxattr(path, "user.odd.y", b"hidden")
    # The rule for user.* comes before the rule that would strip the prefix.
    assert list_xattrs(guest, nodeid) == {b"user.ok", b"user.a,b.trusted.t"}
    assert get_xattr(guest, nodeid, b"trusted.t") == Reply(0, b"v")
    expect(errno.ERANGE, set_xattr(guest, nodeid, b"trusted." + b"x" * 240))


@pytest.mark.parametrize("daemon", [":map:acl:system.posix_:"], indirect=True, ids=["acls"])
def test_acls_are_hidden_under_any_name(guest: Guest, folder: Folder) -> None:
    guest.init(flags=LINUX_FLAGS & ~POSIX_ACL)
    nodeid = guest.lookup(1, folder.name).nodeid
    expect(errno.EOPNOTSUPP, set_xattr(guest, nodeid, b"system.posix_acl_access"))
    expect(errno.EOPNOTSUPP, set_xattr(guest, nodeid, b"acl_access"))
    assert list_xattrs(guest, nodeid) == set()


# security.capability.


def write(guest: Guest, nodeid: int, fh: int) -> None:
    guest.write(nodeid, fh, 0, b"new")


def write_as_user(guest: Guest, nodeid: int, fh: int) -> None:
    body = write_in(fh=fh, size=3, write_flags=4) + b"new"  # FUSE_WRITE_KILL_SUIDGID
    guest.call(Op.WRITE, nodeid, body, room=8, ids=(1000, 1000))


def append(guest: Guest, nodeid: int, fh: int) -> None:
    body = write_in(fh=fh, size=3, flags=os.O_RDWR | os.O_APPEND) + b"new"
    guest.call(Op.WRITE, nodeid, body, room=8)


def set_size(guest: Guest, nodeid: int, _fh: int) -> None:
    guest.call(Op.SETATTR, nodeid, SETATTR_IN.pack(8, 0, 0, 2, *[0] * 12))


def set_size_by_fh(guest: Guest, nodeid: int, fh: int) -> None:
    guest.call(Op.SETATTR, nodeid, SETATTR_IN.pack(8 | 64, 0, fh, 2, *[0] * 12))


def chown(guest: Guest, nodeid: int, _fh: int) -> None:
    guest.call(Op.SETATTR, nodeid, SETATTR_IN.pack(2, 0, 0, 0, *[0] * 9, 7, 0, 0))


def open_truncated(guest: Guest, nodeid: int, _fh: int) -> None:
    guest.call(Op.OPEN, nodeid, OPEN_IN.pack(os.O_RDWR | os.O_TRUNC, 0))


def fallocate(guest: Guest, nodeid: int, fh: int) -> None:
    guest.call(Op.FALLOCATE, nodeid, FALLOCATE_IN.pack(fh, 0, 4096, 0, 0))


def copy(guest: Guest, nodeid: int, fh: int) -> None:
    guest.call(Op.COPY_FILE_RANGE, nodeid, COPY_IN.pack(fh, 0, nodeid, fh, 4096, 3, 0), room=8)


CHANGES = [
    write, write_as_user, append, set_size, set_size_by_fh, chown, open_truncated, fallocate, copy,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_drops_the_remapped_capability(
    guest: Guest, folder: Folder, change: object
) -> None:
    assert callable(change)
    path = folder.path / "x"
    entry, fh = guest.create(folder.nodeid, b"x", mode=0o777)
    guest.write(entry.nodeid, fh, 0, b"old")
    # Set right after a write, through another queue: the worker must not go on believing that the
    # file has no capability.
    assert set_xattr(guest, entry.nodeid, CAP, VALUE, queue=2).error == 0
    change(guest, entry.nodeid, fh)
    assert HOST_CAP not in os.listxattr(path)


def test_create_that_truncates_drops_it(guest: Guest, folder: Folder) -> None:
    path = folder.path / "x"
    path.touch()
    os.setxattr(path, HOST_CAP, VALUE)
    body = CREATE_IN.pack(os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o100644, 0, 0) + names(b"x")
    guest.call(Op.CREATE, folder.nodeid, body)
    assert os.listxattr(path) == []


def test_what_changes_no_data_keeps_it(guest: Guest, folder: Folder) -> None:
    path = folder.path / "x"
    entry, fh = guest.create(folder.nodeid, b"x")
    os.setxattr(path, HOST_CAP, VALUE)
    guest.call(Op.SETATTR, entry.nodeid, SETATTR_IN.pack(1, 0, 0, 0, *[0] * 7, 0o755, *[0] * 4))
    guest.read(entry.nodeid, fh, 0, 9)
    guest.write(entry.nodeid, fh, 0, b"")
    assert os.listxattr(path) == [HOST_CAP]
    folder_cap = folder.path / "d"
    folder_cap.mkdir()
    os.setxattr(folder_cap, HOST_CAP, VALUE)
    chown(guest, guest.lookup(folder.nodeid, b"d").nodeid, 0)
    assert os.listxattr(folder_cap) == [HOST_CAP]


def test_one_that_the_host_sets_goes_within_a_millisecond(guest: Guest, folder: Folder) -> None:
    path = folder.path / "x"
    entry, fh = guest.create(folder.nodeid, b"x")
    for _ in range(20):
        guest.write(entry.nodeid, fh, 0, b"old")
        os.setxattr(path, HOST_CAP, VALUE)
        time.sleep(0.0015)
        guest.write(entry.nodeid, fh, 0, b"new")
        assert os.listxattr(path) == []
