# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the holder: the session goes on in another sandbox.

What the guest knew and had open works as before, under the same numbers. Only a file that has no
name any more, or is not where the guest saw it last, is lost: the guest gets ESTALE for that file.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock, lockf
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from tests.conftest import require
from tests.sandbox_modes import SandboxMode, in_each_mode
from tests.waiting import HANG

from .conftest import OPTIONS, QUEUES, Folder
from .daemon import Daemon, wait_until
from .driver import Frontend, NoReplyError
from .fuse import (
    FLUSH_IN,
    LINK_IN,
    LK_IN,
    RENAME_IN,
    ROOT,
    Dirent,
    Entry,
    Guest,
    Op,
    Reply,
    expect,
    names,
    write_in,
)
from .test_forgotten import is_stale
from .test_ops_files import F_RDLCK, F_UNLCK, F_WRLCK, expect_success, lock
from .test_recovery import run_users, user

GOES_ON = "the guest's session goes on: "
LOST = "is not where the guest saw it last"
NAMES = 300
END = (1 << 63) - 1  # of a range that goes to the end of the file
Range = tuple[int, int, int]  # start, end, type


def kill(pid: int) -> None:
    assert pid > 1, f"{pid} is not a single process"
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def log_of(daemon: Daemon) -> str:
    return daemon.log.read_text(errors="replace")


def lose_sandbox(daemon: Daemon) -> None:
    """Kill the holder, and wait until the next sandbox serves."""
    old = set(daemon.titled("worker"))
    kill(daemon.the(" holder"))

    def serves() -> bool:
        workers = set(daemon.titled("worker"))
        return bool(workers) and not workers & old

    wait_until(serves, 30, "the next sandbox serves")


@pytest.fixture(scope="module")
def daemon(handles: str, sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    held = handles if sandbox_mode.is_privileged else "never"
    with Daemon(*OPTIONS, f"--inode-file-handles={held}", mode=sandbox_mode) as running:
        yield running


def rename(guest: Guest, old: int, name: bytes, new: int, new_name: bytes) -> None:
    guest.call(Op.RENAME, old, RENAME_IN.pack(new) + names(name, new_name))


@in_each_mode
def test_what_the_guest_knows_and_has_open_goes_on(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    a = guest.mkdir(folder.nodeid, b"a")
    b = guest.mkdir(a.nodeid, b"b")
    file, fh = guest.create(b.nodeid, b"file")
    guest.write(file.nodeid, fh, 0, b"0123456789")
    data = guest.call(Op.LINK, a.nodeid, LINK_IN.pack(file.nodeid) + names(b"hard"))
    assert Entry.parse(data).nodeid == file.nodeid
    link = Entry.parse(guest.call(Op.SYMLINK, a.nodeid, names(b"link", b"target")))
    appended, append = guest.create(a.nodeid, b"append", os.O_WRONLY | os.O_APPEND)
    moved, moved_fh = guest.create(a.nodeid, b"before")
    rename(guest, a.nodeid, b"before", folder.nodeid, b"after")
    reader = guest.open(file.nodeid, os.O_RDONLY)
    direct = guest.open(file.nodeid, os.O_RDWR | os.O_DIRECT)
    for turn in range(3):
        lose_sandbox(daemon)
        assert guest.read(file.nodeid, fh, 2, 4) == b"2345"
        assert guest.read(file.nodeid, reader, 0, 1) == b"%d" % max(0, turn - 1)
        assert guest.write(file.nodeid, fh, 0, b"%d" % turn) == 1
        assert guest.read(file.nodeid, direct, 0, 512)[:1] == b"%d" % turn
        reply = guest.ask(Op.WRITE, file.nodeid, write_body(reader), room=8)
        expect(errno.EBADF, reply)
        guest.write(appended.nodeid, append, 0, b"x")
        guest.write(moved.nodeid, moved_fh, 0, b"m")
        assert guest.call(Op.READLINK, link.nodeid, room=100) == b"target"
        assert guest.lookup(b.nodeid, b"file").nodeid == file.nodeid
        assert guest.lookup(a.nodeid, b"hard").nodeid == file.nodeid
        assert guest.lookup(folder.nodeid, b"after").nodeid == moved.nodeid
        assert guest.getattr(file.nodeid).nlink == 2
        new = guest.mkdir(b.nodeid, b"new%d" % turn)
        assert new.nodeid not in (a.nodeid, b.nodeid, file.nodeid, link.nodeid, moved.nodeid)
    assert (folder.path / "after").read_bytes() == b"m"
    guest.release(file.nodeid, fh)
    guest.forget(file.nodeid, 100)  # has no reply, and comes by another queue
    wait_until(partial(is_stale, guest, file.nodeid), 5, "the file is forgotten")


def write_body(fh: int) -> bytes:
    return write_in(fh=fh, offset=0, size=1) + b"x"


def test_a_listing_goes_on_where_it_was(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    wanted = {f"name{i}".encode() for i in range(NAMES)}
    for name in wanted:
        (folder.path / name.decode()).touch()
    fh = guest.open(folder.nodeid, os.O_RDONLY | os.O_DIRECTORY, op=Op.OPENDIR)
    found: list[Dirent] = []
    offset = 0
    while part := guest.readdir(folder.nodeid, fh, offset, 2000):
        found += part
        offset = part[-1].off
        if len(found) < 2 * NAMES // 3:
            lose_sandbox(daemon)
    assert sorted(e.name for e in found) == sorted(wanted | {b".", b".."})


def test_a_file_without_a_name_is_lost_alone(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    gone, gone_fh = guest.create(folder.nodeid, b"gone")
    kept, kept_fh = guest.create(folder.nodeid, b"kept")
    guest.call(Op.UNLINK, folder.nodeid, names(b"gone"))
    guest.write(kept.nodeid, kept_fh, 0, b"data")
    lose_sandbox(daemon)
    expect(errno.ESTALE, guest.ask(Op.GETATTR, gone.nodeid, bytes(16), room=104))
    expect(errno.ESTALE, guest.ask(Op.WRITE, gone.nodeid, write_body(gone_fh), room=8))
    assert guest.read(kept.nodeid, kept_fh, 0, 9) == b"data"
    last = log_of(daemon).rpartition(GOES_ON)[2]
    lines = [line for line in last.splitlines() if f"inode {gone.attr.ino} " in line]
    assert len(lines) == 1, last


def test_a_file_is_found_by_a_name_that_the_guest_saw_earlier(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """The file has two names, and the name that the guest saw last is removed."""
    a, b = guest.mkdir(folder.nodeid, b"a"), guest.mkdir(folder.nodeid, b"b")
    file, fh = guest.create(a.nodeid, b"name")
    guest.write(file.nodeid, fh, 0, b"data")
    guest.call(Op.LINK, b.nodeid, LINK_IN.pack(file.nodeid) + names(b"name"))
    guest.call(Op.UNLINK, b.nodeid, names(b"name"))
    lose_sandbox(daemon)
    assert guest.read(file.nodeid, fh, 0, 9) == b"data"


@pytest.mark.parametrize("kind", [F_RDLCK, F_WRLCK])
def test_a_flock_is_held_again(kind: int, daemon: Daemon, guest: Guest, folder: Folder) -> None:
    file, fh = guest.create(folder.nodeid, b"file")
    with (folder.path / "file").open() as other:
        for operation in (LOCK_SH, LOCK_EX):
            expect_success(lock(guest, Op.SETLK, file.nodeid, fh, 1, kind, flock=True))
            lose_sandbox(daemon)
            guest.getattr(ROOT)  # the session goes on
            if kind == F_RDLCK and operation == LOCK_SH:
                flock(other, LOCK_SH | LOCK_NB)
            else:
                with pytest.raises(BlockingIOError):
                    flock(other, operation | LOCK_NB)
            flock(other, LOCK_UN)
        expect_success(lock(guest, Op.SETLK, file.nodeid, fh, 1, F_UNLCK, flock=True))
        lose_sandbox(daemon)
        guest.getattr(ROOT)
        flock(other, LOCK_EX | LOCK_NB)


def record_lock(guest: Guest, nodeid: int, fh: int, owner: int, lock: Range) -> Reply:
    body = LK_IN.pack(fh, owner, *lock, os.getpid(), 0, 0)
    return guest.ask(Op.SETLK, nodeid, body, queue=1 + owner % QUEUES)


def test_record_locks_are_held_again(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    file, fh = guest.create(folder.nodeid, b"file")
    take = partial(record_lock, guest, file.nodeid, fh)
    expect_success(take(1, (0, 9, F_WRLCK)))
    expect_success(take(1, (20, END, F_RDLCK)))
    expect_success(take(2, (25, 29, F_RDLCK)))
    with (folder.path / "file").open("r+") as other:
        lose_sandbox(daemon)
        expect(errno.EAGAIN, take(2, (9, 9, F_RDLCK)))
        expect(errno.EAGAIN, take(1, (25, 25, F_WRLCK)))
        for start in (0, 9, 20, 10**9):
            with pytest.raises(BlockingIOError):
                lockf(other, LOCK_EX | LOCK_NB, 1, start)
        lockf(other, LOCK_EX | LOCK_NB, 10, 10)
        lockf(other, LOCK_UN)
        expect_success(take(1, (0, 5, F_UNLCK)))
        lose_sandbox(daemon)
        expect_success(take(2, (0, 5, F_WRLCK)))
        expect(errno.EAGAIN, take(2, (6, 6, F_RDLCK)))
        for owner in (1, 2):
            guest.call(Op.FLUSH, file.nodeid, FLUSH_IN.pack(fh, 0, 0, owner))
        lose_sandbox(daemon)
        guest.getattr(ROOT)
        lockf(other, LOCK_EX | LOCK_NB)


WAITER = """
import fcntl, sys
file = open(sys.argv[1], "r+")
print(flush=True)
{"lockf": fcntl.lockf, "flock": fcntl.flock}[sys.argv[2]](file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["lockf", "flock"])
def test_a_lock_that_a_program_of_the_host_waited_for_is_lost(
    kind: str, daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    file, fh = guest.create(folder.nodeid, b"file")
    is_flock = kind == "flock"
    expect_success(lock(guest, Op.SETLK, file.nodeid, fh, 1, F_WRLCK, flock=is_flock))
    argv = [sys.executable, "-c", WAITER, str(folder.path / "file"), kind]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waiter:
        assert waiter.stdin
        assert waiter.stdout
        waiter.stdout.readline()
        try:
            wait_until(lambda: waits_for_lock(waiter.pid), 5, "the program waits for the lock")
            lose_sandbox(daemon)
            waiter.stdout.readline()  # the kernel gave the lock to the program
            reply = lock(guest, Op.SETLK, file.nodeid, fh, 1, F_WRLCK, flock=is_flock)
            expect(errno.EAGAIN, reply)
        finally:
            waiter.kill()
    last = log_of(daemon).rpartition(GOES_ON)[2]
    wanted = f"a lock on the file with inode {file.attr.ino} "
    assert len([line for line in last.splitlines() if wanted in line]) == 1, last


def waits_for_lock(pid: int) -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {pid} " in line for line in lines)


@pytest.mark.parametrize("flock", [False, True])
@pytest.mark.parametrize("victim", ["holder", "worker"])
def test_waiters_keep_their_place(
    victim: str, flock: bool, daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """Two requests on one queue wait for a lock; the first one gets the lock first."""
    file, fh = guest.create(folder.nodeid, b"file")
    fhs = {owner: guest.open(file.nodeid) for owner in (2, 2 + QUEUES)}
    expect_success(lock(guest, Op.SETLK, file.nodeid, fh, 1, F_WRLCK, flock=flock))
    waiting = []
    for owner, own in fhs.items():
        body = LK_IN.pack(own, owner, 0, END, F_WRLCK, 1, int(flock), 0)
        waiting.append(guest.submit(Op.SETLKW, file.nodeid, body, queue=1 + 2 % QUEUES))
        with pytest.raises(NoReplyError):
            guest.finish(waiting[-1], 0.1)
    if victim == "holder":
        lose_sandbox(daemon)
    else:
        kill(daemon.the("worker", f"queue {1 + 2 % QUEUES}"))
    guest.getattr(ROOT)
    for owner, pending in zip(fhs, waiting, strict=True):
        with pytest.raises(NoReplyError):
            guest.finish(pending, 0.2)
        held = (fh, 1) if owner == 2 else (fhs[2], 2)
        expect_success(lock(guest, Op.SETLK, file.nodeid, *held, F_UNLCK, flock=flock))
        expect_success(guest.finish(pending))


def test_another_file_in_its_place_is_not_taken_for_it(
    daemon: Daemon, guest: Guest, folder: Folder, handles: str
) -> None:
    """The host replaces one file and moves another while the sandbox is gone, or long before."""
    (folder.path / "sub").mkdir()
    replaced, fh = guest.create(folder.nodeid, b"replaced")
    (folder.path / "moved").touch()
    moved = guest.lookup(folder.nodeid, b"moved")
    (folder.path / "replaced").unlink()
    (folder.path / "replaced").write_text("another file")
    (folder.path / "moved").rename(folder.path / "sub" / "moved")
    lose_sandbox(daemon)
    expect(errno.ESTALE, guest.ask(Op.GETATTR, replaced.nodeid, bytes(16), room=104))
    assert guest.ask(Op.WRITE, replaced.nodeid, write_body(fh), room=8).error
    assert (folder.path / "replaced").read_text() == "another file"
    if handles == "prefer":
        assert guest.getattr(moved.nodeid).ino == moved.attr.ino
    else:
        expect(errno.ESTALE, guest.ask(Op.GETATTR, moved.nodeid, bytes(16), room=104))
    assert guest.lookup(folder.nodeid, b"replaced").nodeid != replaced.nodeid


class SandboxKiller(threading.Thread):
    """Kills the holder of each sandbox some time after the sandbox has begun to serve."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__()
        self._daemon = daemon
        self._ended = threading.Event()
        self.kills = 0

    def run(self) -> None:
        chance = random.Random(1)  # noqa: S311
        while not self._ended.wait(chance.uniform(0.3, 0.8)):
            lose_sandbox(self._daemon)
            self.kills += 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


@in_each_mode
def test_sandboxes_die_during_mixed_work(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    counts = [0] * 6
    users = [user(folder, number, counts, may_lose=True) for number in range(6)]
    with SandboxKiller(daemon) as killer:

        def enough() -> bool:
            return killer.kills >= 2 and min(counts) >= 3

        run_users(guest, users, 8, enough, may_fail={errno.ESTALE})
    assert killer.kills >= 2
    assert min(counts) >= 3, f"rounds done: {counts}"


def test_requests_in_flight_are_done_once(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    log, fh = guest.create(folder.nodeid, b"log", os.O_WRONLY | os.O_APPEND)
    for turn in range(5):
        waiting = []
        for i in range(40):
            body = write_body(fh)
            waiting.append(guest.submit(Op.WRITE, log.nodeid, body, room=8, queue=1 + i % QUEUES))
            if i == 10 * turn:
                kill(daemon.the(" holder"))
        for pending in waiting:
            expect(0, guest.finish(pending, HANG))
        assert (folder.path / "log").stat().st_size == 40 * (turn + 1)


def test_the_supervisor_dies_as_well(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    file, fh = guest.create(folder.nodeid, b"file")
    for pause in (0, 0.02, 0.1, 0.3):
        kill(daemon.the(" holder"))
        time.sleep(pause)
        kill(daemon.the("supervisor"))
        assert guest.write(file.nodeid, fh, 0, b"data") == 4


def test_a_message_of_the_vmm_is_answered_once(daemon: Daemon, guest: Guest) -> None:
    """A ring is stopped and started while its sandbox is gone."""
    for _ in range(4):
        waiting = [guest.submit(Op.GETATTR, ROOT, bytes(16), room=104) for _ in range(50)]
        kill(daemon.the(" holder"))
        base = guest.frontend.stop_ring(1)
        assert base == guest.frontend.rings[1].avail_idx & 0xFFFF
        guest.frontend.rings[1].reap()
        for pending in waiting:
            expect(0, guest.finish(pending, HANG))
        guest.frontend.restart_ring(1)
        guest.lookup(ROOT, b".", queue=1)


def test_files_of_a_mount_below(sandbox_mode: SandboxMode, handles: str, tmp_path: Path) -> None:
    require("root")
    share = tmp_path / "share"
    (share / "mount").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "below", share / "mount"], check=True)
    try:
        (share / "mount" / "sub").mkdir()
        (share / "mount" / "sub" / "x").write_text("below")
        options = (*OPTIONS, f"--inode-file-handles={handles}")
        with (
            Daemon(*options, mode=sandbox_mode, share=share) as daemon,
            Frontend(daemon.socket) as frontend,
        ):
            guest = Guest(frontend.setup(2))
            guest.init()
            mount = guest.lookup(ROOT, b"mount")
            sub = guest.lookup(mount.nodeid, b"sub")
            x = guest.lookup(sub.nodeid, b"x")
            fh = guest.open(x.nodeid, os.O_RDWR)
            for _ in range(2):
                lose_sandbox(daemon)
                assert guest.read(x.nodeid, fh, 0, 9) == b"below"
                assert guest.lookup(sub.nodeid, b"x").nodeid == x.nodeid
                assert guest.getattr(mount.nodeid).ino == (share / "mount").stat().st_ino
    finally:
        subprocess.run(["umount", "-l", share / "mount"], check=True)


def test_without_a_launcher_the_vmm_stays_connected() -> None:
    with Daemon(*OPTIONS) as daemon:
        with Frontend(daemon.socket) as frontend:
            guest = Guest(frontend.setup(2))
            guest.init()
            guest.getattr(ROOT)
            daemon.lose_launcher()
            wait_until(lambda: "no deputy was left" in log_of(daemon), 30, "a loud line")
            kill(daemon.the(" holder"))
            trying = "no other sandbox could be built"
            wait_until(lambda: log_of(daemon).count(trying) >= 2, 30, "it tries again")
            assert not daemon.exited()
        wait_until(daemon.exited, 30, "the daemon ends with its VMM")


def test_a_vmm_that_goes_away_in_between() -> None:
    with Daemon(*OPTIONS) as daemon:
        for pause in (0, 0.05, 0.2):
            with Frontend(daemon.socket) as frontend:
                Guest(frontend.setup(2)).init()
                kill(daemon.the(" holder"))
                time.sleep(pause)
        with Frontend(daemon.socket) as frontend:
            guest = Guest(frontend.setup(2))
            guest.init()
            guest.getattr(ROOT)


def test_many_inodes_come_back(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    for i in range(100):
        (folder.path / f"{i}").mkdir()
        for j in range(50):
            (folder.path / f"{i}" / f"{j}").touch()
    known = {}
    for entry in guest.list(folder.nodeid, 1 << 16, plus=True):
        if entry.entry is None or not entry.entry.nodeid:
            continue
        for below in guest.list(entry.entry.nodeid, 1 << 16, plus=True):
            if below.entry and below.entry.nodeid:
                known[below.entry.nodeid] = below.ino
    assert len(known) == 5000
    lose_sandbox(daemon)
    chance = random.Random(2)  # noqa: S311
    for nodeid in chance.sample(sorted(known), 200):
        assert guest.getattr(nodeid).ino == known[nodeid]
    assert "0 are lost" in log_of(daemon).rpartition(GOES_ON)[2].splitlines()[0]
