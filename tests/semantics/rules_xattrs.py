# SPDX-License-Identifier: Apache-2.0
"""Rules of extended attributes, POSIX ACLs and inode flags."""

import os
import subprocess

from .process import MEMBER, OTHER, OWNER, acting_as, as_user, attempt, result
from .rules import rule
from .syscalls import (
    AT_EACCESS,
    FS_APPEND,
    FS_IMMUTABLE,
    FS_NOATIME,
    FS_NODUMP,
    access,
    get_flags,
    set_flags,
)
from .tree import make, make_dir, mode_of, read


def _setfacl(*arguments: str) -> None:
    subprocess.run(["setfacl", *arguments], check=True, capture_output=True)


def _getfacl(path: str) -> list[str]:
    done = subprocess.run(["getfacl", "-nE", path], check=True, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if line and not line.startswith("#")]


@rule([b"one", b"two", ["user.a", "user.b"], "ENODATA", ["user.b"], b"", "ENODATA"])
def attributes_are_kept() -> object:
    make("f")
    os.setxattr("f", "user.a", b"one")
    os.setxattr("f", "user.b", b"two")
    values = [os.getxattr("f", "user.a"), os.getxattr("f", "user.b"), sorted(os.listxattr("f"))]
    os.removexattr("f", "user.a")
    gone = [attempt(os.getxattr, "f", "user.a"), os.listxattr("f")]
    os.setxattr("f", "user.b", b"")
    return [*values, *gone, os.getxattr("f", "user.b"), attempt(os.removexattr, "f", "user.x")]


@rule(["ENODATA", "ok", "EEXIST", "ok", b"3"])
def attribute_flags_are_obeyed() -> object:
    make("f")
    return [
        attempt(os.setxattr, "f", "user.a", b"1", os.XATTR_REPLACE),
        attempt(os.setxattr, "f", "user.a", b"2", os.XATTR_CREATE),
        attempt(os.setxattr, "f", "user.a", b"2", os.XATTR_CREATE),
        attempt(os.setxattr, "f", "user.a", b"3", os.XATTR_REPLACE),
        os.getxattr("f", "user.a"),
    ]


@rule(["ok", "ERANGE", "ENOTSUP", "ENOTSUP", "E2BIG", "ENOSPC", 3000])
def attributes_have_limits() -> object:
    make("f")
    tries = [
        attempt(os.setxattr, "f", "user." + "n" * 250, b""),
        attempt(os.setxattr, "f", "user." + "n" * 251, b""),
        attempt(os.setxattr, "f", "nothing.a", b""),
        attempt(os.setxattr, "f", "noprefix", b""),
        attempt(os.setxattr, "f", "user.big", bytes(65537)),
        attempt(os.setxattr, "f", "user.full", os.urandom(65536)),
    ]
    os.setxattr("f", "user.v", bytes(3000))
    return [*tries, len(os.getxattr("f", "user.v"))]


@rule(["ok", "EACCES", "EACCES", "ok", "EPERM", "EPERM", "ENODATA"])
def attributes_need_permission() -> object:
    make("f", b"", 0o644)
    os.chown("f", 1000, 1000)
    os.symlink("f", "link")
    make("secret", b"", 0o600)
    os.setxattr("f", "trusted.t", b"")
    return [
        as_user(OWNER, os.setxattr, "f", "user.a", b"1"),
        as_user(OTHER, os.setxattr, "f", "user.a", b"1"),
        as_user(OTHER, os.getxattr, "secret", "user.a"),
        as_user(OTHER, os.getxattr, "f", "user.a"),
        as_user(OWNER, os.setxattr, "f", "trusted.b", b"1"),
        attempt(os.setxattr, "link", "user.a", b"", follow_symlinks=False),
        as_user(OWNER, os.getxattr, "f", "trusted.t"),
    ]


@rule([b"t", ["trusted.t", "user.u"], ["user.u"], b"x", b"dir"])
def trusted_attributes_are_roots() -> object:
    make("f", b"", 0o644)
    os.setxattr("f", "trusted.t", b"t")
    os.setxattr("f", "user.u", b"u")
    with acting_as(OTHER):
        others = os.listxattr("f")
    os.mkdir("d")
    os.setxattr("d", "user.d", b"dir")
    fd = os.open("f", os.O_RDONLY)
    os.setxattr(fd, "user.fd", b"x")
    mine = os.getxattr("f", "trusted.t"), [n for n in sorted(os.listxattr("f")) if "fd" not in n]
    return [*mine, others, os.getxattr(fd, "user.fd"), os.getxattr("d", "user.d")]


@rule(["ok", "ENODATA", b"1"])
def an_attribute_of_a_link_is_not_its_targets() -> object:
    make("f")
    os.symlink("f", "link")
    os.setxattr("f", "trusted.a", b"1")
    own = attempt(os.setxattr, "link", "trusted.l", b"2", follow_symlinks=False)
    other = result(os.getxattr, "f", "trusted.l")
    return [own, other, os.getxattr("link", "trusted.a")]


CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@rule(["ok", True, "ENODATA", "ENODATA", "ENODATA"])
def file_capabilities_go_with_what_is_written() -> object:
    found: list[object] = []
    make("f", b"12345678", 0o777)
    for change in (
        lambda: os.write(os.open("f", os.O_WRONLY), b"x"),
        lambda: os.chown("f", 1000, 1000),
        lambda: os.truncate("f", 1),
    ):
        set_it = attempt(os.setxattr, "f", "security.capability", CAPABILITY)
        if not found:
            found += [set_it, os.getxattr("f", "security.capability") == CAPABILITY]
        change()
        found.append(result(os.getxattr, "f", "security.capability"))
    return found


# ---- ACLs ----


@rule([["user::rw-", "user:1003:r--", "group::---", "mask::r--", "other::---"],
       "ok", "EACCES", "EACCES", "0o640"])  # fmt: skip
def an_acl_lets_somebody_in() -> object:
    make("f", b"x", 0o600)
    _setfacl("-m", "u:1003:r", "f")
    return [
        _getfacl("f"),
        as_user(OTHER, read, "f"),
        as_user(OTHER, access, "f", os.W_OK, AT_EACCESS),
        as_user(OWNER, read, "f"),
        mode_of("f"),
    ]


@rule([["user::rw-", "group::r-x", "group:1003:rwx", "mask::r-x", "other::---"],
       ["user::rwx", "group::r-x", "group:1003:rwx", "mask::rwx", "other::---"],
       "0o650", "0o2770", (0, 2000)])  # fmt: skip
def a_default_acl_is_inherited_instead_of_the_umask() -> object:
    make_dir("d")
    os.chown("d", 0, 2000)
    os.chmod("d", 0o2777)
    _setfacl("-d", "-m", "u::rwx,g::rx,g:1003:rwx,o::-", "d")
    os.umask(0o077)
    os.close(os.open("d/file", os.O_CREAT | os.O_WRONLY, 0o656))
    os.mkdir("d/sub", 0o777)
    st = os.stat("d/sub")
    inherited = [line for line in _getfacl("d/sub") if not line.startswith("default:")]
    modes = mode_of("d/file"), mode_of("d/sub")
    return [_getfacl("d/file"), inherited, *modes, (st.st_uid, st.st_gid)]


@rule(["0o660", "0o640", ["user::rw-", "user:1003:rw-", "group::r--", "mask::r--", "other::---"]])
def chmod_changes_the_mask_of_an_acl() -> object:
    make("f", b"", 0o640)
    _setfacl("-m", "u:1003:rw", "f")
    before = mode_of("f")
    os.chmod("f", 0o640)
    return [before, mode_of("f"), _getfacl("f")]


@rule([["user::rw-", "group::r--", "other::---"], "ENOTSUP", "EACCES", "EPERM"])
def acls_can_be_removed_and_need_an_owner() -> object:
    make("f", b"", 0o640)
    os.chown("f", 1000, 1000)
    _setfacl("-m", "u:1003:rw", "f")
    value = os.getxattr("f", "system.posix_acl_access")
    denied = as_user(MEMBER, os.setxattr, "f", "system.posix_acl_access", value)
    _setfacl("-b", "f")
    os.symlink("f", "link")
    link = attempt(os.setxattr, "link", "system.posix_acl_access", value, follow_symlinks=False)
    default = attempt(os.setxattr, "f", "system.posix_acl_default", value)
    return [_getfacl("f"), link, default, denied]


@rule(["0o770", "0o2770", "ok"])
def setting_an_acl_drops_setgid_for_a_group_of_others() -> object:
    found = []
    for name, gid in (("f", 2000), ("g", 1000)):
        make(name)
        os.chown(name, 1000, gid)
        os.chmod(name, 0o2770)
        make("pattern", b"", 0o770)
        _setfacl("-m", "u:1003:rwx", "pattern")
        acl = os.getxattr("pattern", "system.posix_acl_access")
        with acting_as(OWNER):
            os.setxattr(name, "system.posix_acl_access", acl)
        found.append(mode_of(name))
    return [*found, as_user(OTHER, read, "f")]


# ---- flags ----


@rule([0, True, "EPERM", "EPERM", "EPERM", "ok"])
def an_immutable_file_does_not_change() -> object:
    make("f", b"x")
    before = get_flags("f") & (FS_IMMUTABLE | FS_APPEND)
    set_flags("f", get_flags("f") | FS_IMMUTABLE)
    tries = [
        bool(get_flags("f") & FS_IMMUTABLE),
        attempt(os.open, "f", os.O_WRONLY),
        attempt(os.chmod, "f", 0o600),
        attempt(os.unlink, "f"),
    ]
    set_flags("f", get_flags("f") & ~FS_IMMUTABLE)
    return [before, *tries, attempt(os.unlink, "f")]


@rule(["EPERM", "ok", "EPERM", b"xy"])
def an_append_only_file_only_grows() -> object:
    make("f", b"x")
    set_flags("f", get_flags("f") | FS_APPEND)
    try:
        return [
            attempt(os.open, "f", os.O_WRONLY),
            attempt(lambda: os.write(os.open("f", os.O_WRONLY | os.O_APPEND), b"y")),
            attempt(os.truncate, "f", 0),
            read("f"),
        ]
    finally:
        set_flags("f", get_flags("f") & ~FS_APPEND)


@rule([True, True, False, "EPERM"])
def flags_can_be_set_and_read() -> object:
    os.mkdir("d")
    make("f", b"", 0o644)
    set_flags("d", get_flags("d") | FS_NODUMP)
    set_flags("f", get_flags("f") | FS_NOATIME)
    both = [bool(get_flags("d") & FS_NODUMP), bool(get_flags("f") & FS_NOATIME)]
    set_flags("d", get_flags("d") & ~FS_NODUMP)
    return [*both, bool(get_flags("d") & FS_NODUMP), as_user(OTHER, set_flags, "f", 0)]
