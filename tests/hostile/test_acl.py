# SPDX-License-Identifier: Apache-2.0
"""POSIX ACLs in the requests and replies: what tests/mount cannot see from outside."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Folder
from .daemon import Daemon
from .fuse import (
    ACCESS_IN,
    GETXATTR_IN,
    LINUX_FLAGS,
    MKDIR_IN,
    ROOT,
    SETXATTR_IN,
    Guest,
    Op,
    expect,
    names,
)

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
DONT_MASK, POSIX_ACL = 1 << 6, 1 << 20
KILL_SGID = 1
USER = (1000, 1000)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("--keep-listening", "--posix-acl=auto") as running:
        yield running


def set_acl(path: Path, *arguments: str) -> None:
    subprocess.run(["setfacl", *arguments, path], check=True)


@pytest.mark.parametrize("missing", [DONT_MASK, POSIX_ACL])
def test_a_guest_that_cannot_enforce_them_sees_none(
    guest: Guest, folder: Folder, missing: int
) -> None:
    guest.init(flags=LINUX_FLAGS & ~missing)
    assert not guest.flags & POSIX_ACL
    set_acl(folder.path, "-m", "u:1:r")
    nodeid = guest.lookup(ROOT, folder.name).nodeid
    for name in (ACCESS, DEFAULT):
        body = names(name.encode())
        expect(errno.EOPNOTSUPP, guest.ask(Op.GETXATTR, nodeid, GETXATTR_IN.pack(99, 0) + body))
        expect(errno.EOPNOTSUPP, guest.ask(Op.REMOVEXATTR, nodeid, body))
    assert guest.call(Op.LISTXATTR, nodeid, GETXATTR_IN.pack(99, 0)) == b""
    # The guest has already applied the umask to this mode.
    guest.call(
        Op.MKDIR, nodeid, MKDIR_IN.pack(0o775, 0o777 if missing == DONT_MASK else 0) + b"d\0"
    )
    assert (folder.path / "d").stat().st_mode & 0o777 == 0o775


@pytest.mark.parametrize(("name", "mode"), [(ACCESS, 0o0754), (DEFAULT, 0o2750)])
def test_sgid_goes_with_an_access_acl_only(
    guest: Guest, folder: Folder, name: str, mode: int
) -> None:
    path = folder.path / "d"
    path.mkdir()
    path.chmod(0o2750)
    other = folder.path / "other"
    other.mkdir()
    set_acl(other, "-m", "u::rwx,g::rx,o::r")
    set_acl(other, "-d", "-m", "u::rwx,g::rx,o::r,u:1:r")
    set_acl(other, "-m", "u:1:r")
    value = os.getxattr(other, name)
    nodeid = guest.lookup(folder.nodeid, b"d").nodeid
    body = SETXATTR_IN.pack(len(value), 0, KILL_SGID, 0) + names(name.encode()) + value
    guest.call(Op.SETXATTR, nodeid, body)
    assert os.getxattr(path, name) == value
    assert path.stat().st_mode & 0o7777 == mode


def test_creating_ignores_the_mode_of_the_folder_and_access_reports_it(
    guest: Guest, folder: Folder
) -> None:
    folder.path.chmod(0o700)
    for number in range(2):
        body = MKDIR_IN.pack(0o755, 0) + names(b"%d" % number)
        guest.call(Op.MKDIR, folder.nodeid, body, ids=USER)
        made = (folder.path / str(number)).stat()
        assert (made.st_uid, made.st_gid) == USER
        body = ACCESS_IN.pack(os.W_OK, 0)
        expect(errno.EACCES, guest.ask(Op.ACCESS, folder.nodeid, body, ids=USER))
    set_acl(folder.path, "-m", f"u:{USER[0]}:rwx")
    guest.call(Op.ACCESS, folder.nodeid, ACCESS_IN.pack(os.W_OK, 0), ids=USER)
