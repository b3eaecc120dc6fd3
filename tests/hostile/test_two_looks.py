# SPDX-License-Identifier: Apache-2.0
"""Two looks at a name are two files: each place that looks twice, with a file replaced in between.

strace holds one system call of one worker up; another queue replaces the file, and then the call
goes on. entry.c lists the places. tests/hostile/race.py does the same without a list.
"""

import contextlib
import errno
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.sandbox_modes import SandboxMode, in_every_mode, with_handles, without_handles

from .conftest import OPTIONS, Folder
from .daemon import Daemon, wait_until
from .fuse import (
    CREATE_IN,
    FATTR_SIZE,
    LINK_IN,
    MKNOD_IN,
    OPEN_IN,
    ROOT,
    SETATTR_IN,
    SETXATTR_COMPAT_IN,
    Entry,
    Guest,
    Op,
    expect,
    names,
    parse_dirents,
    read_in,
)
from .injector import number
from .race_checks import check_fds

HOLD_SECONDS = 100  # at most: the test ends it
SETTLE_SECONDS = 0.25
REGULAR = (stat.S_IFREG, 0)
KINDS = {
    "fifo": (stat.S_IFIFO, 0),
    "character device": (stat.S_IFCHR, os.makedev(1, 7)),
    "block device": (stat.S_IFBLK, os.makedev(7, 0)),
    "socket": (stat.S_IFSOCK, 0),
}


pytestmark = in_every_mode


@pytest.fixture(scope="module")
def daemon(sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    """With sandbox=none no mount is nodev: the type alone keeps a device closed."""
    handles = "prefer" if sandbox_mode.is_privileged else "never"
    with Daemon(*OPTIONS, f"--inode-file-handles={handles}", mode=sandbox_mode) as running:
        yield running


class Hold:
    """Holds the next `call` of the worker of queue 1 up, at its begin ("enter") or end ("exit")."""

    def __init__(self, daemon: Daemon, guest: Guest, call: str, when: str) -> None:
        self._worker = daemon.the("worker 0")
        self._number, self._when = number(call), when
        delay = f"inject={call}:delay_{when}={HOLD_SECONDS * 10**6}:when=1"
        self._log = daemon.folder / "strace"
        self._log.unlink(missing_ok=True)  # of the call before
        argv = [require("strace"), "-q", "-p", str(self._worker), "-o", str(self._log)]
        self._strace = subprocess.Popen([*argv, "-e", f"trace={call},statx", "-e", delay])
        wait_until(lambda: self._sees_a_getattr(guest), 10, "strace")

    def _sees_a_getattr(self, guest: Guest) -> bool:
        guest.getattr(ROOT)
        return self._log.exists() and "statx" in self._log.read_text()

    def wait(self) -> None:
        """Wait until the call is held up."""
        wait_until(self._is_stopped, 10, "the call")
        if self._when == "exit":  # its begin looks the same, and is over at once
            time.sleep(SETTLE_SECONDS)

    def _is_stopped(self) -> bool:
        process = Path(f"/proc/{self._worker}")
        is_traced = "\nState:\tt" in (process / "status").read_text()
        return is_traced and (process / "syscall").read_text().split()[0] == str(self._number)

    def end(self) -> None:
        """Let the call go on."""
        self._strace.terminate()
        self._strace.wait()


@contextlib.contextmanager
def held_up(daemon: Daemon, guest: Guest, call: str, when: str = "enter") -> Iterator[Hold]:
    hold = Hold(daemon, guest, call, when)
    try:
        yield hold
    finally:
        hold.end()


def replace(
    daemon: Daemon, guest: Guest, folder: Folder, name: bytes, kind: tuple[int, int]
) -> int:
    """Put another file in the place of `name`, by queue 2, and let the guest forget that file;
    returns its inode number. A device that a guest may not make is made by the host."""
    guest.call(Op.UNLINK, folder.nodeid, names(name), queue=2)
    body = MKNOD_IN.pack(kind[0] | 0o666, kind[1], 0, 0) + names(name)
    made = guest.ask(Op.MKNOD, folder.nodeid, body, queue=2)
    if kind[1] and not daemon.mode.is_privileged:
        expect(errno.EPERM, made)
        return make(daemon, folder, name, kind).stat().st_ino
    entry = Entry.parse(made.data)
    guest.forget(entry.nodeid, queue=2)  # hiprio is the worker that is held up
    return entry.attr.ino


def make(daemon: Daemon, folder: Folder, name: bytes, kind: tuple[int, int]) -> Path:
    """Make a file from the host, for the daemon's user."""
    path = folder.path / name.decode()
    os.mknod(path, kind[0] | 0o666, kind[1])
    path.chmod(0o666)
    return daemon.give(path)


@with_handles
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_lookup_races_mknod(
    daemon: Daemon, guest: Guest, folder: Folder, kind: tuple[int, int]
) -> None:
    """The attributes are of a regular file, the handle is of what got its inode number."""
    for attempt in range(50):
        name = b"%d" % attempt
        ino = make(daemon, folder, name, REGULAR).stat().st_ino
        with held_up(daemon, guest, "name_to_handle_at") as hold:
            pending = guest.submit(Op.LOOKUP, folder.nodeid, names(name), room=128)
            hold.wait()
            made = replace(daemon, guest, folder, name, kind)
            hold.end()
            entry = Entry.parse(guest.finish(pending).data)
        if stat.S_ISREG(entry.attr.mode) and made == ino == entry.attr.ino:
            break
    else:
        pytest.fail("the file system never gave the number to the next file")
    for flags in (os.O_RDWR, os.O_RDONLY, os.O_WRONLY | os.O_TRUNC):
        body = OPEN_IN.pack(flags, 0)
        expect(errno.ESTALE, guest.ask(Op.OPEN, entry.nodeid, body, room=16))
    # The guest looks the name up again, and gets what is there now.
    again = guest.lookup(folder.nodeid, name)
    assert again.nodeid != entry.nodeid
    assert stat.S_IFMT(again.attr.mode) == kind[0]
    expect(errno.ESTALE, guest.ask(Op.OPEN, entry.nodeid, OPEN_IN.pack(os.O_RDWR, 0), room=16))
    expect(errno.ENXIO, guest.ask(Op.OPEN, again.nodeid, OPEN_IN.pack(os.O_RDWR, 0), room=16))
    # Nor does it come back by its nodeid, once the guest has forgotten it.
    guest.forget(entry.nodeid)
    expect(errno.ESTALE, guest.ask(Op.LOOKUP, entry.nodeid, names(b"."), room=128))
    guest.forget(again.nodeid)
    assert guest.lookup(again.nodeid, b".") == again
    check_fds(daemon)


@without_handles
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_lookup_without_handles_races_mknod(
    daemon: Daemon, guest: Guest, folder: Folder, kind: tuple[int, int]
) -> None:
    """The name is opened in place of being asked for a handle. The entry is what was opened."""
    make(daemon, folder, b"x", REGULAR)
    with held_up(daemon, guest, "openat") as hold:
        pending = guest.submit(Op.LOOKUP, folder.nodeid, names(b"x"), room=128)
        hold.wait()
        made = replace(daemon, guest, folder, b"x", kind)
        hold.end()
        entry = Entry.parse(guest.finish(pending).data)
    assert (entry.attr.ino, stat.S_IFMT(entry.attr.mode)) == (made, kind[0])
    for flags in (os.O_RDWR, os.O_RDONLY, os.O_WRONLY | os.O_TRUNC):
        expect(errno.ENXIO, guest.ask(Op.OPEN, entry.nodeid, OPEN_IN.pack(flags, 0), room=16))
    assert guest.lookup(folder.nodeid, b"x").nodeid == entry.nodeid
    check_fds(daemon)


def test_listing_reports_one_type(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    make(daemon, folder, b"x", REGULAR)
    fh = guest.open(folder.nodeid, os.O_RDONLY, op=Op.OPENDIR)
    with held_up(daemon, guest, "getdents64", "exit") as hold:
        body = read_in(fh=fh, size=4096)
        pending = guest.submit(Op.READDIRPLUS, folder.nodeid, body)
        hold.wait()
        replace(daemon, guest, folder, b"x", KINDS["fifo"])
        hold.end()
        found = parse_dirents(guest.finish(pending).data, plus=True)
    (entry,) = [each for each in found if each.name == b"x"]
    assert entry.entry is not None
    assert entry.entry.attr.mode >> 12 == entry.kind == stat.S_IFIFO >> 12
    guest.release(folder.nodeid, fh, op=Op.RELEASEDIR)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_create_of_an_existing_device(
    daemon: Daemon, guest: Guest, folder: Folder, kind: tuple[int, int]
) -> None:
    make(daemon, folder, b"x", kind)
    body = CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o100666, 0, 0) + names(b"x")
    expect(errno.ENXIO, guest.ask(Op.CREATE, folder.nodeid, body))
    check_fds(daemon)


def test_create_races_mknod(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    """The name exists when CREATE tries to make it, and is a FIFO when CREATE opens it."""
    make(daemon, folder, b"x", REGULAR)
    body = CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o100666, 0, 0) + names(b"x")
    with held_up(daemon, guest, "openat", "exit") as hold:
        pending = guest.submit(Op.CREATE, folder.nodeid, body)
        hold.wait()
        replace(daemon, guest, folder, b"x", KINDS["fifo"])
        hold.end()
        expect(errno.ENXIO, guest.finish(pending))
    check_fds(daemon)


def test_link_races_mknod(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    make(daemon, folder, b"x", REGULAR)
    x = guest.lookup(folder.nodeid, b"x")
    with held_up(daemon, guest, "linkat", "exit") as hold:
        pending = guest.submit(Op.LINK, folder.nodeid, LINK_IN.pack(x.nodeid) + names(b"y"))
        hold.wait()
        replace(daemon, guest, folder, b"y", KINDS["fifo"])
        hold.end()
        entry = Entry.parse(guest.finish(pending).data)
    assert entry.nodeid != x.nodeid
    assert stat.S_ISFIFO(entry.attr.mode)
    expect(errno.ENXIO, guest.ask(Op.OPEN, entry.nodeid, OPEN_IN.pack(os.O_RDWR, 0), room=16))
    assert stat.S_ISREG(guest.getattr(x.nodeid).mode)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_size_and_attributes_of_devices(
    daemon: Daemon, guest: Guest, folder: Folder, kind: tuple[int, int]
) -> None:
    """What goes through a name below /proc/self/fd does not open the file either."""
    make(daemon, folder, b"x", kind)
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    size = SETATTR_IN.pack(FATTR_SIZE, 0, 0, 0, *[0] * 12)
    expect(errno.EINVAL, guest.ask(Op.SETATTR, nodeid, size, room=104))
    value = SETXATTR_COMPAT_IN.pack(1, 0) + bytes(8) + names(b"trusted.x") + b"v"
    guest.ask(Op.SETXATTR, nodeid, value)  # allowed or not: it must not open anything
    expect(errno.EINVAL, guest.ask(Op.SYNCFS, nodeid, bytes(8)))
    expect(errno.EINVAL, guest.ask(Op.READLINK, nodeid))
    expect(errno.ENOTDIR, guest.ask(Op.OPENDIR, nodeid, bytes(8), room=16))
    check_fds(daemon)
