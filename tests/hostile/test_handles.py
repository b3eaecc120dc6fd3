# SPDX-License-Identifier: Apache-2.0
"""Inodes held by file handles: they reach the right file whatever the host does, with few fds."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox_modes import SandboxMode, with_handles

from .conftest import OPTIONS, QUEUES, Folder
from .daemon import Daemon, wait_until
from .fuse import Guest, Op, expect, names, read_in

LIMIT = 512  # limit of open files of the daemon
RAW = ("prefer", "mandatory")
MODES = (*RAW, "signed")
CAPABILITIES = 0x880000DB
DAC_READ_SEARCH = 1 << 2
only_raw = pytest.mark.parametrize("daemon", RAW, indirect=True)


@pytest.fixture(scope="module", params=MODES)
def daemon(request: pytest.FixtureRequest, sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    options = (f"--inode-file-handles={request.param}", f"--rlimit-nofile={LIMIT}")
    with Daemon(*OPTIONS, *options, mode=sandbox_mode) as running:
        yield running


def open_files(daemon: Daemon) -> int:
    pool = daemon.the("pool")
    return sum(1 for _ in Path(f"/proc/{pool}/fd").iterdir())


@only_raw
def test_an_inode_costs_no_fd(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    before = open_files(daemon)
    for i in range(3 * LIMIT):
        (folder.path / str(i)).touch()
    nodeids = [guest.lookup(folder.nodeid, b"%d" % i).nodeid for i in range(3 * LIMIT)]
    assert len(set(nodeids)) == 3 * LIMIT
    assert open_files(daemon) < before + 10


def test_a_large_tree_works_within_the_limit(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    """Every inode is used, one after the other and then backwards, over all queues."""
    for i in range(2 * LIMIT):
        (folder.path / f"d{i}").mkdir()
        (folder.path / f"d{i}/f").write_text(str(i))
    found = {}
    for i in range(2 * LIMIT):
        home = guest.lookup(folder.nodeid, b"d%d" % i, queue=1 + i % QUEUES)
        found[i] = guest.lookup(home.nodeid, b"f", queue=1 + (i + 1) % QUEUES)
        assert open_files(daemon) <= LIMIT
    for i in reversed(range(2 * LIMIT)):
        attr = guest.getattr(found[i].nodeid)
        assert attr.ino == (folder.path / f"d{i}/f").stat().st_ino
        fh = guest.open(found[i].nodeid, os.O_RDONLY)
        assert guest.read(found[i].nodeid, fh, 0, 9) == str(i).encode()
        guest.release(found[i].nodeid, fh)
    assert open_files(daemon) <= LIMIT


def test_directories_that_the_guest_makes_fit_into_the_limit(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """Directories that the guest makes have an fd at first. After the fd is closed the nodeids
    still mean the same directories."""
    made = [guest.mkdir(folder.nodeid, b"d%d" % i).nodeid for i in range(2 * LIMIT)]
    for queue in range(1, QUEUES + 1):
        guest.lookup(folder.nodeid, b".", queue)  # fds are closed between two batches
    wait_until(lambda: open_files(daemon) <= LIMIT * 3 // 4, 5, "fds are closed")
    for i, nodeid in enumerate(made):
        assert guest.lookup(folder.nodeid, b"d%d" % i, 1 + i % QUEUES).nodeid == nodeid
        assert guest.mkdir(nodeid, b"sub").nodeid
    assert open_files(daemon) <= LIMIT


@with_handles
def test_a_removed_directory_lives_on_in_the_guest(guest: Guest, folder: Folder) -> None:
    made = guest.mkdir(folder.nodeid, b"made").nodeid
    (folder.path / "found").mkdir()
    found = guest.lookup(folder.nodeid, b"found").nodeid
    for name, nodeid in ((b"made", made), (b"found", found)):
        guest.call(Op.RMDIR, folder.nodeid, names(name))
        assert guest.getattr(nodeid).nlink == 0
        expect(errno.ENOENT, guest.ask(Op.LOOKUP, nodeid, names(b"x"), room=128))
        guest.release(nodeid, guest.open(nodeid, op=Op.OPENDIR), op=Op.RELEASEDIR)


@with_handles
def test_too_many_open_files_are_one_requests_problem(guest: Guest, folder: Folder) -> None:
    (folder.path / "x").write_text("x")
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    fhs = []
    for _ in range(2 * LIMIT):
        reply = guest.ask(Op.OPEN, nodeid, bytes(8), room=16)
        if reply.error:
            assert reply.error == errno.ENFILE
            break
        fhs.append(int.from_bytes(reply.data[:8], "little"))
    assert LIMIT // 4 < len(fhs) < LIMIT
    # A directory cannot be opened at this point either; an inode that is already known needs no fd.
    assert guest.ask(Op.OPENDIR, folder.nodeid, bytes(8), room=16).error == errno.ENFILE
    (folder.path / "later").touch()
    assert guest.lookup(folder.nodeid, b"later").nodeid
    guest.release(nodeid, fhs.pop())
    wait_until(
        lambda: not guest.ask(Op.OPENDIR, folder.nodeid, bytes(8), room=16).error, 5, "room again"
    )


@with_handles
@only_raw
def test_a_deleted_file_is_stale_and_its_number_anothers(guest: Guest, folder: Folder) -> None:
    """The host gives the number of a deleted inode to the next file; the guest must never see the
    new file as the old one."""
    seen: dict[int, int] = {}
    reused = 0
    for i in range(4000):  # another process on this file system may take the number first
        if reused == 20:
            break
        path = folder.path / "victim"
        path.write_text(str(i))
        ino = path.stat().st_ino
        entry = guest.lookup(folder.nodeid, b"victim")
        assert entry.attr.ino == ino
        if i % 4 == 0:  # an fd in the cache keeps the number from being used again
            fh = guest.open(entry.nodeid, os.O_RDONLY)
            assert guest.read(entry.nodeid, fh, 0, 9) == str(i).encode()
            guest.release(entry.nodeid, fh)
        if ino in seen:
            reused += 1
            assert entry.nodeid != seen[ino], "another file, another nodeid"
            expect(errno.ESTALE, guest.ask(Op.GETATTR, seen[ino], bytes(16), room=104))
        seen[ino] = entry.nodeid
        path.unlink()
    assert reused == 20, "this file system does not reuse inode numbers"


def test_a_file_that_is_unlinked_while_open_can_still_be_used(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    other = guest.open(entry.nodeid, os.O_RDWR)
    guest.write(entry.nodeid, fh, 0, b"still here")
    guest.release(entry.nodeid, fh)
    guest.call(Op.UNLINK, folder.nodeid, names(b"x"))
    assert guest.getattr(entry.nodeid).nlink == 0
    assert guest.read(entry.nodeid, other, 0, 99) == b"still here"
    guest.release(entry.nodeid, other)


def test_hard_links_and_renames_keep_the_nodeid(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    guest.release(entry.nodeid, fh)
    (folder.path / "y").hardlink_to(folder.path / "x")
    assert guest.lookup(folder.nodeid, b"y").nodeid == entry.nodeid
    (folder.path / "y").rename(folder.path / "z")
    assert guest.lookup(folder.nodeid, b"z").nodeid == entry.nodeid
    assert guest.lookup(folder.nodeid, b"x").nodeid == entry.nodeid


@only_raw
def test_listing_with_attributes_uses_no_fds(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    for i in range(2 * LIMIT):
        (folder.path / f"{i:05}").touch()
    before = open_files(daemon)
    entries = [e for e in guest.list(folder.nodeid, plus=True) if e.name not in (b".", b"..")]
    assert len(entries) == 2 * LIMIT
    assert all(e.entry is not None and e.entry.nodeid for e in entries)
    assert open_files(daemon) < before + 10


@with_handles
def test_it_is_allowed_what_it_needs_and_no_more(daemon: Daemon) -> None:
    for pid in [*daemon.titled("pool"), *daemon.titled("worker")]:
        status = Path(f"/proc/{pid}/status").read_text()
        effective = re.search(r"^CapPrm:\s*(\w+)", status, re.MULTILINE)
        assert effective is not None
        expected = CAPABILITIES | (0 if daemon.titled(" handles") else DAC_READ_SEARCH)
        assert int(effective[1], 16) == expected
        assert re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)


@with_handles
def test_workers_die_and_handles_live_on(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    (folder.path / "x").write_text("kept")
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    for pid in daemon.titled("worker"):
        os.kill(pid, 9)
    wait_until(lambda: len(daemon.titled("worker")) == QUEUES, 5, "workers again")
    fh = guest.open(nodeid, os.O_RDONLY)
    body = read_in(fh=fh, size=9)
    assert guest.ask(Op.READ, nodeid, body, queue=2).data == b"kept"


@pytest.mark.sandbox_modes("userns", "unprivileged")
@pytest.mark.parametrize("asked", ["auto", "signed", "prefer"])
def test_a_user_namespace_has_neither_broker_nor_capability(
    sandbox_mode: SandboxMode, asked: str
) -> None:
    with Daemon(f"--inode-file-handles={asked}", mode=sandbox_mode) as daemon:
        daemon.await_pool()
        pool = daemon.the("pool")
        status = Path(f"/proc/{pool}/status").read_text()
        permitted = re.search(r"^CapPrm:\s*(\w+)", status, re.MULTILINE)
        assert permitted is not None
        assert not int(permitted[1], 16) & DAC_READ_SEARCH
        assert not daemon.titled(" handles")
