# SPDX-License-Identifier: Apache-2.0
"""What the guest has forgotten and has exported: LOOKUP of "." finds the file by its nodeid."""

import errno
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.sandbox_modes import SandboxMode, with_handles

from .conftest import OPTIONS, QUEUES, Folder
from .daemon import Daemon, wait_until
from .fuse import FORGET_IN, LINUX_FLAGS, MKNOD_IN, READ_IN, ROOT, Entry, Guest, Op, expect, names
from .test_mounts_below import mount, unmount

EXPORT_SUPPORT = 1 << 4
KINDS = (b"regular", b"directory", b"link", b"fifo")
MEETINGS = 10
TOGETHER = 100  # files
FILES = 300  # more files than the broker signs at a time

pytestmark = with_handles


@pytest.fixture(scope="module", params=["signed", "prefer"])
def daemon(request: pytest.FixtureRequest, sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    handles = f"--inode-file-handles={request.param}"
    with Daemon(*OPTIONS, handles, mode=sandbox_mode, is_shared_mount=True) as running:
        yield running


@pytest.fixture
def path(folder: Folder) -> Path:
    """The path of a folder with a file of each kind."""
    (folder.path / "regular").write_text("text")
    (folder.path / "directory").mkdir()
    (folder.path / "link").symlink_to("regular")
    os.mkfifo(folder.path / "fifo")
    return folder.path


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def is_stale(guest: Guest, nodeid: int, queue: int = 1) -> bool:
    return guest.ask(Op.GETATTR, nodeid, bytes(16), room=104, queue=queue).error == errno.ESTALE


def forget(guest: Guest, *entries: Entry, count: int = 1) -> None:
    """Forget these entries, and wait until they are stale."""
    for entry in entries:
        guest.forget(entry.nodeid, count)
    for entry in entries:
        wait_until(partial(is_stale, guest, entry.nodeid), 5, "it is forgotten")


def look_and_forget(guest: Guest, folder: Folder, name: bytes) -> Entry:
    entry = guest.lookup(folder.nodeid, name)
    forget(guest, entry)
    return entry


def expect_stale(guest: Guest, entry: Entry, name: bytes = b".") -> None:
    expect(errno.ESTALE, guest.ask(Op.LOOKUP, entry.nodeid, names(name), room=128))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("queue", [1, QUEUES])
def test_it_is_found_again(
    guest: Guest, folder: Folder, path: Path, name: bytes, queue: int
) -> None:
    entry = look_and_forget(guest, folder, name)
    again = guest.lookup(entry.nodeid, b".", queue)
    assert again == entry
    assert again.attr.ino == (path / name.decode()).lstat().st_ino
    assert guest.getattr(entry.nodeid).mode == entry.attr.mode
    forget(guest, entry)
    assert guest.lookup(folder.nodeid, name, queue) == entry, "found by its name, it is the same"
    assert guest.lookup(entry.nodeid, b".").nodeid == entry.nodeid
    forget(guest, entry, count=2)
    assert guest.lookup(entry.nodeid, b".", queue) == entry


def test_they_are_found_while_they_are_forgotten(guest: Guest, folder: Folder) -> None:
    """The FORGETs of one queue meet the LOOKUPs of another queue. The first FORGET of a file makes
    its handle."""
    for turn in range(MEETINGS):
        made = [folder.path / f"{turn} {number}" for number in range(TOGETHER)]
        for path in made:
            path.touch()
        entries = [guest.lookup(folder.nodeid, path.name.encode()) for path in made]
        for _ in range(3):
            forgetting = [
                guest.submit(Op.FORGET, entry.nodeid, FORGET_IN.pack(1), queue=0)
                for entry in entries
            ]
            looking = [
                guest.submit(Op.LOOKUP, entry.nodeid, names(b"."), room=128, queue=QUEUES)
                for entry in entries
            ]
            for pending in forgetting:
                guest.finish(pending)
            for pending, entry in zip(looking, entries, strict=True):
                reply = guest.finish(pending)
                assert not reply.error, f"turn {turn}: {errno.errorcode[reply.error]}"
                assert Entry.parse(reply.data).nodeid == entry.nodeid


def test_it_can_be_used_again(guest: Guest, folder: Folder, path: Path) -> None:
    made, fh = guest.create(folder.nodeid, b"made")
    guest.write(made.nodeid, fh, 0, b"written")
    guest.release(made.nodeid, fh)
    forget(guest, made)
    (path / "made").rename(path / "directory" / "moved")
    assert guest.lookup(made.nodeid, b".").attr.size == 7
    fh = guest.open(made.nodeid, os.O_RDWR)
    body = READ_IN.pack(fh, 0, 9, 0, 0, 0, 0)
    assert guest.ask(Op.READ, made.nodeid, body).data == b"written"
    guest.release(made.nodeid, fh)


def test_what_is_forgotten_before_it_is_closed(guest: Guest, folder: Folder) -> None:
    """FORGET and RELEASE come by two queues."""
    for number in range(20):
        made, fh = guest.create(folder.nodeid, b"%d" % number)
        guest.forget(made.nodeid)
        guest.release(made.nodeid, fh)
        wait_until(partial(is_stale, guest, made.nodeid), 5, "it is forgotten")
        assert guest.lookup(made.nodeid, b".").nodeid == made.nodeid
        assert guest.getattr(made.nodeid).ino == made.attr.ino


def test_the_directory_above_is_found(guest: Guest, folder: Folder, path: Path) -> None:
    (path / "directory" / "sub").mkdir()
    directory = guest.lookup(folder.nodeid, b"directory")
    sub = guest.lookup(directory.nodeid, b"sub")
    forget(guest, directory, sub)
    above = guest.lookup(sub.nodeid, b"..")
    assert (above.nodeid, above.attr.ino) == (directory.nodeid, directory.attr.ino)
    assert is_stale(guest, sub.nodeid), "nothing was said of the directory itself"
    assert guest.lookup(sub.nodeid, b".").nodeid == sub.nodeid


def test_the_root_is_above(guest: Guest, folder: Folder) -> None:
    expect_root = guest.lookup(ROOT, b".")
    guest.forget(folder.nodeid)
    wait_until(partial(is_stale, guest, folder.nodeid), 5, "it is forgotten")
    assert guest.lookup(folder.nodeid, b"..") == expect_root
    assert guest.lookup(folder.nodeid, b".").nodeid == folder.nodeid
    guest.release(ROOT, guest.open(ROOT, os.O_RDONLY, op=Op.OPENDIR), op=Op.RELEASEDIR)


def test_nothing_else_finds_it(guest: Guest, folder: Folder, path: Path) -> None:
    directory = look_and_forget(guest, folder, b"directory")
    (path / "directory" / "x").touch()
    expect_stale(guest, directory, b"x")
    body = MKNOD_IN.pack(stat.S_IFREG | 0o644, 0, 0, 0) + names(b"y")
    expect(errno.ESTALE, guest.ask(Op.MKNOD, directory.nodeid, body))
    expect(errno.ESTALE, guest.ask(Op.OPENDIR, directory.nodeid, bytes(8), room=16))
    later, earlier = directory.nodeid + (2 << 32), (directory.nodeid - (2 << 32)) % 2**64
    for nodeid in (later, earlier, 1 << 40, 2**64 - 1):
        expect(errno.ESTALE, guest.ask(Op.LOOKUP, nodeid, names(b"."), room=128))


def test_what_is_deleted_is_stale_and_stays_so(guest: Guest, folder: Folder, path: Path) -> None:
    """It stays stale even if its inode number is given to a file of another type."""
    entry = look_and_forget(guest, folder, b"regular")
    (path / "regular").unlink()
    expect_stale(guest, entry)
    for number in range(200):
        os.mkfifo(path / f"other{number}")
        found = guest.lookup(folder.nodeid, b"other%d" % number)
        assert found.nodeid != entry.nodeid
        expect_stale(guest, entry)
        if found.attr.ino == entry.attr.ino:
            break


def test_a_file_of_the_same_number_is_another(guest: Guest, folder: Folder, path: Path) -> None:
    reused = 0
    for number in range(4000):
        victim = path / "victim"
        victim.write_text(str(number))
        entry = look_and_forget(guest, folder, b"victim")
        victim.unlink()
        victim.write_text("another")
        other = guest.lookup(folder.nodeid, b"victim")
        assert other.nodeid != entry.nodeid
        expect_stale(guest, entry)
        reused += other.attr.ino == entry.attr.ino
        if reused == 10:
            return
        forget(guest, other)
        victim.unlink()
    pytest.fail("this file system does not give a number again")


def test_it_holds_no_fd(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    pool = daemon.the("pool")
    for number in range(FILES):
        (folder.path / str(number)).mkdir()
    before = open_files(pool)
    entries = [guest.lookup(folder.nodeid, b"%d" % number) for number in range(FILES)]
    forget(guest, *entries)
    wait_until(lambda: open_files(pool) <= before, 5, "the fds are closed")
    for entry in entries:
        assert guest.lookup(entry.nodeid, b".").nodeid == entry.nodeid


def test_workers_die_and_it_is_found(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    for number in range(FILES):
        (folder.path / str(number)).touch()
    entries = [guest.lookup(folder.nodeid, b"%d" % number) for number in range(FILES)]
    forget(guest, *entries)
    for pid in daemon.titled("worker"):
        os.kill(pid, 9)
    wait_until(lambda: len(daemon.titled("worker")) == QUEUES, 5, "workers again")
    for number, entry in enumerate(entries):
        assert guest.lookup(entry.nodeid, b".", 1 + number % QUEUES).nodeid == entry.nodeid


def test_a_file_of_another_mount_is_forgotten(guest: Guest, folder: Folder, path: Path) -> None:
    """A file that is only let go would keep its mount busy."""
    mount(path / "mount")
    try:
        home = guest.lookup(folder.nodeid, b"mount")
        file = guest.lookup(home.nodeid, b"file")
        forget(guest, home, file)
        expect_stale(guest, file)
        expect_stale(guest, home)
    finally:
        wait_until(partial(unmount, path / "mount"), 10, "the host unmounts it")


@pytest.mark.parametrize("flags", [0, EXPORT_SUPPORT])
def test_a_guest_that_exports_nothing_has_forgotten_it(
    guest: Guest, folder: Folder, path: Path, flags: int
) -> None:
    assert path.is_dir()
    guest.init(flags=LINUX_FLAGS & ~EXPORT_SUPPORT | flags)
    home = folder._replace(nodeid=guest.lookup(1, folder.name).nodeid)
    entry = look_and_forget(guest, home, b"regular")
    if flags:
        assert guest.lookup(entry.nodeid, b".") == entry
    else:
        expect_stale(guest, entry)


def test_another_session_knows_nothing_of_it(guest: Guest, folder: Folder, path: Path) -> None:
    assert path.is_dir()
    entry = look_and_forget(guest, folder, b"regular")
    guest.init()
    expect_stale(guest, entry)
