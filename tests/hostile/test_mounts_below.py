# SPDX-License-Identifier: Apache-2.0
"""Mounts and subvolumes below the share: no process holds what the guest has forgotten."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import require
from tests.waiting import HANG

from .conftest import OPTIONS, Folder
from .daemon import Daemon, wait_until
from .driver import Frontend
from .file_systems import file_system
from .fuse import OPEN_IN, OPEN_OUT, ROOT, Guest, Op
from .fuse_server import FlatFileSystem, served

MANY = 100  # more mounts than any limit there was
SUBVOLUMES, FILES = 80, 50
NOFLUSH = 1 << 5
ROUNDS = 20  # other processes of the machine mount as well


@pytest.fixture(scope="module")
def daemon(handles: str) -> Iterator[Daemon]:
    require("root")
    with Daemon(*OPTIONS, f"--inode-file-handles={handles}", is_shared_mount=True) as running:
        yield running


def open_files(daemon: Daemon) -> int:
    """The open files of the pool and its workers, and of the broker if one runs."""
    return sum(
        sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        for pid in (*daemon.titled("pool"), *daemon.titled(" handles"))
    )


def mount(path: Path) -> None:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    (path / "file").write_text("text")


def unmount(path: Path) -> bool:
    return subprocess.run(["umount", path], capture_output=True, check=False).returncode == 0


def look_and_forget(guest: Guest, folder: Folder, name: str) -> list[int]:
    """LOOKUP and FORGET as for `ls -l` of a mount and the guest's own umount. Returns the
    nodeids."""
    home = guest.lookup(folder.nodeid, name.encode()).nodeid
    listed = [e.entry for e in guest.list(home, plus=True) if e.entry and e.entry.nodeid]
    nodeids = [home, *(entry.nodeid for entry in listed)]
    for nodeid in nodeids:
        guest.getattr(nodeid)
        guest.forget(nodeid)
    return nodeids


def test_a_mount_that_the_guest_has_forgotten_is_not_busy(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    before = open_files(daemon)
    for number in range(MANY):
        path = folder.path / str(number)
        mount(path)
        assert len(look_and_forget(guest, folder, path.name)) == 2
        wait_until(partial(unmount, path), 10, "the host unmounts the mount")
    wait_until(lambda: open_files(daemon) <= before, 5, "no fd of the mounts is left")


def test_many_mounts_at_a_time_cost_few_fds_each(
    handles: str, daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    paths = [folder.path / str(number) for number in range(MANY)]
    for path in paths:
        mount(path)
        for number in range(10):
            (path / str(number)).touch()
    try:
        before = open_files(daemon)
        for path in paths:
            home = guest.lookup(folder.nodeid, path.name.encode()).nodeid
            for number in range(10):
                guest.lookup(home, b"%d" % number)
        if handles == "prefer":
            assert open_files(daemon) - before < 3 * MANY
        guest.init()
        for path in paths:
            wait_until(partial(unmount, path), 10, "the session is over")
    finally:
        for path in paths:
            subprocess.run(["umount", "-l", path], capture_output=True, check=False)


def test_a_mount_is_busy_while_the_guest_knows_a_file_on_it(guest: Guest, folder: Folder) -> None:
    path = folder.path / "mount"
    mount(path)
    home = guest.lookup(folder.nodeid, b"mount").nodeid
    file = guest.lookup(home, b"file").nodeid
    assert not unmount(path)
    guest.forget(home)
    assert guest.getattr(file).size == 4
    assert not unmount(path)
    guest.forget(file)
    wait_until(lambda: unmount(path), 10, "the host unmounts the mount")


def test_another_mount_of_the_same_number_is_tried_again(guest: Guest, folder: Folder) -> None:
    """The host gives a mount id to another mount at once; what was known of the first mount is not
    true of the next one."""
    path = folder.path / "mount"
    path.mkdir()
    for kind in ("ramfs", "tmpfs", "ramfs", "tmpfs"):
        subprocess.run(["mount", "-t", kind, kind, path], check=True)
        (path / "file").write_text(kind)
        for nodeid in look_and_forget(guest, folder, "mount"):
            assert nodeid
        home = guest.lookup(folder.nodeid, b"mount").nodeid
        file = guest.lookup(home, b"file").nodeid
        fh = guest.open(file)
        assert guest.read(file, fh, 0, 9) == kind.encode()
        guest.release(file, fh)
        guest.forget(file)
        guest.forget(home)
        wait_until(lambda: unmount(path), 10, "the host unmounts the mount")


@contextmanager
def tmpfs_at(path: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    (path / "file").touch()
    yield
    wait_until(lambda: unmount(path), 10, "the host unmounts the mount")


def mount_number(path: Path) -> tuple[str, int]:
    """The mount id and the device number, which the kernel gives to the next mount as well."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next(line.split()[0] for line in lines if f" {path} " in line), path.stat().st_dev


def closes_silently(guest: Guest) -> bool:
    """Open a file of the mount for writing: does the daemon say that a FLUSH would do nothing?"""
    home = guest.lookup(ROOT, b"mount").nodeid
    file = guest.lookup(home, b"file").nodeid
    data = guest.call(Op.OPEN, file, OPEN_IN.pack(os.O_RDWR, 0), room=16)
    fh, flags = OPEN_OUT.unpack(data)[:2]
    guest.release(file, fh)
    guest.forget(file)
    guest.forget(home)
    return bool(flags & NOFLUSH)


def test_nothing_is_known_of_the_next_mount_of_the_same_number(handles: str) -> None:
    """The kernel caches writes to FUSE, and reports at close() what became of them."""
    with (
        Daemon(f"--inode-file-handles={handles}", is_shared_mount=True) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init()
        path = daemon.share / "mount"
        path.mkdir()
        same = 0
        for _ in range(ROUNDS):
            with tmpfs_at(path):
                number = mount_number(path)
                assert closes_silently(guest)
            with served(FlatFileSystem({b"file": b""}, lambda n: n), path):
                same += mount_number(path) == number
                assert not closes_silently(guest)
        assert same


@pytest.fixture
def subvolumes(tmp_path: Path) -> Iterator[Path]:
    require("btrfs")
    with file_system("btrfs", tmp_path) as top:
        subprocess.run(["mount", "-o", "remount,commit=1", top], check=True)
        make = f"for i in {{1..{SUBVOLUMES}}}; do btrfs subvolume create s$i; done"
        subprocess.run(["bash", "-ec", make], cwd=top, check=True, capture_output=True)
        for number in range(1, SUBVOLUMES + 1):
            for file in range(FILES):
                (top / f"s{number}" / str(file)).touch()
        yield top


@pytest.mark.parametrize("handles", ["prefer", "signed"])
def test_subvolumes_cost_no_fds_and_are_cleaned(handles: str, subvolumes: Path) -> None:
    with (
        Daemon(f"--inode-file-handles={handles}", share=subvolumes) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init()
        before = open_files(daemon)
        homes = [guest.lookup(ROOT, b"s%d" % number).nodeid for number in range(1, SUBVOLUMES + 1)]
        for home in homes:
            for entry in guest.list(home, plus=True):
                if entry.entry and entry.entry.nodeid:
                    guest.getattr(entry.entry.nodeid)
        wait_until(lambda: open_files(daemon) - before < 20, 20, "few fds are left")
        for number in range(1, 4):
            argv = ["btrfs", "subvolume", "delete", str(subvolumes / f"s{number}")]
            subprocess.run(argv, check=True, capture_output=True)
        argv = ["btrfs", "subvolume", "sync", str(subvolumes)]
        subprocess.run(argv, check=True, capture_output=True, timeout=HANG)
        assert guest.getattr(homes[5]).nlink
        assert guest.ask(Op.GETATTR, homes[0], bytes(16), room=104).error
