# SPDX-License-Identifier: Apache-2.0
"""What the guest sets by ioctl: flags of its own files, and nothing that is for the host to
decide."""

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode

from .daemon import Daemon
from .driver import Frontend
from .file_systems import file_system
from .fuse import IOCTL_IN, IOCTL_OUT, ROOT, Guest, Op, Reply

pytestmark = in_each_mode

GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
INT = struct.Struct("<I")
XATTR = struct.Struct("<IIIII8x")  # xflags extsize nextents projid cowextsize

FLAGS = {"S": 0x8, "i": 0x10, "a": 0x20, "d": 0x40, "A": 0x80, "D": 0x1_0000}
# CAP_LINUX_IMMUTABLE in a user namespace counts for nothing on the host.
HOSTS_CAPABILITY = ("i", "a", "immutable", "append")
FOREIGN_FLAGS = {"j": 0x4000, "T": 0x2_0000, "P": 0x2000_0000, "F": 0x4000_0000, "x": 0x200_0000}
XFLAGS = {"append": 0x10, "immutable": 0x8, "sync": 0x20, "noatime": 0x40, "nodump": 0x80}
FOREIGN_XFLAGS = {
    "realtime": 0x1, "rtinherit": 0x100, "projinherit": 0x200, "extsize": 0x800,
    "extszinherit": 0x1000, "nodefrag": 0x2000, "filestream": 0x4000, "dax": 0x8000,
    "cowextsize": 0x10000,
}  # fmt: skip

KINDS = ("ext4", "xfs")  # ext4 has project ids only if the kernel has quotas
PROJECT = 7


@pytest.fixture(scope="module", params=KINDS)
def share(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A share on a file system of its own."""
    with file_system(request.param, tmp_path_factory.mktemp("ioctl")) as path:
        yield path


def has_projects(share: Path) -> bool:
    return share.name == "xfs"


class Opened:
    """A file or directory of the share that the guest has open, and that the host has open as
    well."""

    def __init__(self, guest: Guest, path: Path) -> None:
        self.guest, self.path = guest, path
        is_folder = path.is_dir()
        self.nodeid = guest.lookup(ROOT, path.name.encode()).nodeid
        op = Op.OPENDIR if is_folder else Op.OPEN
        self.fh = guest.open(self.nodeid, os.O_RDONLY, op=op)

    def ask(self, command: int, value: bytes, out_size: int = 0) -> Reply:
        body = IOCTL_IN.pack(self.fh, 0, command, 0, len(value), out_size) + value
        return self.guest.ask(Op.IOCTL, self.nodeid, body, room=IOCTL_OUT.size + out_size)

    def flags(self) -> int:
        reply = self.ask(GETFLAGS, b"", 4)
        assert reply.error == 0
        return int(INT.unpack(reply.data[IOCTL_OUT.size :])[0])

    def xattr(self) -> list[int]:
        reply = self.ask(FSGETXATTR, b"", XATTR.size)
        assert reply.error == 0
        return list(XATTR.unpack(reply.data[IOCTL_OUT.size :]))

    def set_flags(self, flags: int) -> int:
        return self.ask(SETFLAGS, INT.pack(flags)).error

    def set_xattr(self, values: list[int]) -> int:
        return self.ask(FSSETXATTR, XATTR.pack(*values)).error

    def on_host(self) -> list[int]:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            return list(XATTR.unpack(fcntl.ioctl(fd, FSGETXATTR, bytes(XATTR.size))))
        finally:
            os.close(fd)


@contextmanager
def opened(share: Path, mode: SandboxMode, name: str, *options: str) -> Iterator[Opened]:
    """A new file, or a new directory if the name ends in /; on xfs the file has a project."""
    path = share / name
    path.mkdir() if name.endswith("/") else path.touch()
    if has_projects(share):
        subprocess.run(["chattr", "-p", str(PROJECT), str(path)], check=True)
    try:
        with (
            Daemon(*options, share=share, mode=mode) as daemon,
            Frontend(daemon.socket) as frontend,
        ):
            guest = Guest(frontend.setup(1))
            guest.init()
            yield Opened(guest, path)
    finally:
        subprocess.run(["chattr", "-R", "-ia", str(path)], check=True)
        path.rmdir() if path.is_dir() else path.unlink()


def test_flags_of_its_own_are_set_and_cleared(share: Path, sandbox_mode: SandboxMode) -> None:
    refused = () if sandbox_mode.is_privileged else HOSTS_CAPABILITY
    with opened(share, sandbox_mode, "own", "--modcaps=+linux_immutable") as file:
        before = file.flags()
        for letter, flag in FLAGS.items():
            if letter == "D":
                continue  # flags of directories
            if letter in refused:
                assert file.set_flags(before | flag) == errno.EPERM, letter
                continue
            assert file.set_flags(before | flag) == 0, letter
            assert file.flags() == before | flag, letter
            assert file.set_flags(before) == 0, letter
        xattr = file.xattr()
        for name, flag in XFLAGS.items():
            if name in refused:
                assert file.set_xattr([xattr[0] | flag, *xattr[1:]]) == errno.EPERM, name
                continue
            assert file.set_xattr([xattr[0] | flag, *xattr[1:]]) == 0, name
            assert file.on_host()[0] == xattr[0] | flag, name
            assert file.set_xattr(xattr) == 0, name
        assert file.on_host()[3] == PROJECT * has_projects(share)


@pytest.mark.parametrize("name", ["file", "folder/"])
def test_what_is_the_hosts_stays(share: Path, sandbox_mode: SandboxMode, name: str) -> None:
    with opened(share, sandbox_mode, name) as file:
        flags, xattr = file.flags(), file.xattr()
        before = file.on_host()
        for letter, flag in FOREIGN_FLAGS.items():
            assert file.set_flags(flags ^ flag) == errno.EPERM, letter
        for name_, flag in FOREIGN_XFLAGS.items():
            assert file.set_xattr([xattr[0] ^ flag, *xattr[1:]]) == errno.EPERM, name_
        for at, what in ((1, "extsize"), (3, "projid"), (4, "cowextsize")):
            changed = [*xattr]
            changed[at] += 1 << 20
            assert file.set_xattr(changed) == errno.EPERM, what
            changed[0] |= 0x800 | 0x1000 | 0x10000
            assert file.set_xattr(changed) == errno.EPERM, what
        out_of_it = [xattr[0] & ~0x200, *xattr[1:3], PROJECT - xattr[3], xattr[4]]
        assert file.set_xattr(out_of_it) == errno.EPERM
        assert file.on_host() == before
        assert file.set_xattr(xattr) == 0, "setting the present value is allowed"


@pytest.mark.parametrize("share", ["xfs"], indirect=True)
def test_a_project_that_is_inherited_stays(share: Path, sandbox_mode: SandboxMode) -> None:
    """An operator limits a folder by a project: the guest cannot end that, and new files are in the
    project."""
    with opened(share, sandbox_mode, "folder/") as folder:
        subprocess.run(["chattr", "+P", str(folder.path)], check=True)
        xattr = folder.xattr()
        assert xattr[0] & 0x200
        assert folder.set_xattr([xattr[0] & ~0x200, *xattr[1:]]) == errno.EPERM
        assert folder.set_flags(folder.flags() & ~0x2000_0000) == errno.EPERM
        entry, _ = folder.guest.create(folder.nodeid, b"x")
        assert entry.attr.size == 0
        listed = subprocess.run(
            ["lsattr", "-p", str(folder.path / "x")], check=True, capture_output=True, text=True
        )
        assert int(listed.stdout.split()[0]) == PROJECT
        (folder.path / "x").unlink()


@pytest.mark.parametrize("share", ["xfs"], indirect=True)
def test_the_operator_may_allow_project_ids(share: Path, sandbox_mode: SandboxMode) -> None:
    """Linux lets no process change project ids in a user namespace."""
    with opened(share, sandbox_mode, "folder/", "--allow-project-ids") as folder:
        xattr, before = folder.xattr(), folder.on_host()
        result = folder.set_xattr([xattr[0] | 0x200, *xattr[1:3], 9, xattr[4]])
        if not sandbox_mode.is_privileged:
            assert (result, folder.on_host()) == (errno.EINVAL, before)
            return
        assert result == 0
        assert folder.on_host()[0] & 0x200
        assert folder.on_host()[3] == 9
        assert folder.set_xattr([xattr[0] | 0x200, 1 << 20, xattr[2], 9, xattr[4]]) == errno.EPERM
