# SPDX-License-Identifier: Apache-2.0
"""The number of file-system calls for each op, counted by strace: DESIGN 3.6 sets the limits."""

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import HANG, LOADED

from .conftest import OPTIONS, Folder
from .daemon import Daemon, wait_until
from .fuse import FLUSH_IN, GETXATTR_IN, MKDIR_IN, Guest, Op, names, read_in

COUNT = 20
LATE = 6  # calls that close an fd, and ask the broker for the handle of another
# Calls of the loop, not of an op: eventfds, waiting, locks, the clock.
NOT_FS = {
    "epoll_wait", "read", "write", "poll", "ppoll", "futex", "clock_gettime", "sched_yield",
    "madvise", "rt_sigprocmask", "mmap", "munmap", "mprotect", "restart_syscall",
}  # fmt: skip


@pytest.fixture(scope="module", params=["never", "signed", "prefer"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with Daemon(*OPTIONS, f"--inode-file-handles={request.param}") as running:
        running.handles = request.param == "prefer"  # type: ignore[attr-defined]
        yield running


class Strace:
    """Watches all threads of the worker that serves queue 1."""

    def __init__(self, daemon: Daemon, output: Path) -> None:
        worker = daemon.the("worker", "queue 1")
        self.output = output
        self.process = subprocess.Popen(
            ["strace", "-f", "-qq", "-o", output, "-p", str(worker)], stderr=subprocess.PIPE
        )
        status = Path(f"/proc/{worker}/status")
        wait_until(lambda: "TracerPid:\t0" not in status.read_text(), 5, "strace is attached")

    def stop(self) -> Counter[str]:
        self.process.terminate()
        self.process.communicate(timeout=HANG)
        calls: Counter[str] = Counter()
        for line in self.output.read_text().splitlines():
            if match := re.match(r"\d+ +(\w+)\(", line):
                calls[match[1]] += 1
        return Counter({name: n for name, n in calls.items() if name not in NOT_FS})


def await_quiet(daemon: Daemon, seconds: float = 3.0) -> None:
    """Wait until the worker has opened and closed no fd for `seconds`: fds that are not used, and
    those that are closed late, are closed by then."""
    worker = daemon.the("worker", "queue 1")
    seen: list[set[str]] = []
    while len(seen) < 2 or seen[-1] != seen[-2]:
        assert len(seen) < 10 * LOADED, "fds come and go"
        time.sleep(seconds)
        seen.append({path.name for path in Path(f"/proc/{worker}/fd").iterdir()})


def per_op(
    daemon: Daemon, tmp_path: Path, guest: Guest, folder: Folder, action: Callable[[int], object]
) -> Counter[str]:
    """The calls of COUNT runs of `action`, after one run that is not counted."""
    action(-1)
    guest.lookup(folder.nodeid, b".")
    await_quiet(daemon, 0.05)
    watch = Strace(daemon, tmp_path / "strace")
    for i in range(COUNT):
        action(i)
    return watch.stop()


def allow(calls: Counter[str], most: float) -> None:
    """LATE more calls may be of work that is done once, after a second or two: a loaded machine is
    that slow."""
    assert COUNT * most * 0.5 <= sum(calls.values()) <= COUNT * most + LATE, dict(calls)


Watch = Callable[[Callable[[int], object]], Counter[str]]


@pytest.fixture
def watch(daemon: Daemon, tmp_path: Path, guest: Guest, folder: Folder) -> Watch:
    return lambda action: per_op(daemon, tmp_path, guest, folder, action)


def test_lookup(watch: Watch, guest: Guest, folder: Folder) -> None:
    for i in range(-1, COUNT):
        (folder.path / str(i)).touch()
    time.sleep(1.1)  # a young file is identified by its handle
    allow(watch(lambda i: guest.lookup(folder.nodeid, b"%d" % i)), 2.4)  # new to the guest
    allow(watch(lambda i: guest.lookup(folder.nodeid, b"%d" % i)), 1)  # known to the guest
    body = names(b"nothing")
    allow(watch(lambda _: guest.ask(Op.LOOKUP, folder.nodeid, body, room=128)), 1)


def test_getattr_and_getxattr(watch: Watch, guest: Guest, folder: Folder) -> None:
    (folder.path / "x").touch()
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    allow(watch(lambda _: guest.getattr(nodeid)), 1)
    body = GETXATTR_IN.pack(99, 0) + names(b"user.none")
    allow(watch(lambda _: guest.ask(Op.GETXATTR, nodeid, body)), 1)


def test_reading_and_writing(watch: Watch, guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    guest.write(entry.nodeid, fh, 0, bytes(4096))
    allow(watch(lambda _: guest.read(entry.nodeid, fh, 0, 4096)), 1)
    allow(watch(lambda _: guest.write(entry.nodeid, fh, 0, bytes(4096))), 1)
    body = FLUSH_IN.pack(fh, 0, 0, 1)
    assert not watch(lambda _: guest.call(Op.FLUSH, entry.nodeid, body))


def test_open_and_release(watch: Watch, guest: Guest, folder: Folder) -> None:
    (folder.path / "x").touch()
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    fhs: list[int] = []
    # The open, and the stat of the opened file (entry_reopen).
    allow(watch(lambda _: fhs.append(guest.open(nodeid, os.O_RDONLY))), 2)
    calls = watch(lambda _: guest.release(nodeid, fhs.pop()) if fhs else None)
    assert not {"openat", "statx", "fstat", "fcntl", "flock"} & set(calls), dict(calls)


def test_creating_and_removing(watch: Watch, guest: Guest, folder: Folder) -> None:
    created: list[tuple[int, int]] = []

    def create(i: int) -> None:
        entry, fh = guest.create(folder.nodeid, b"f%d" % i)
        created.append((entry.nodeid, fh))

    allow(watch(create), 2)
    body = MKDIR_IN.pack(0o755, 0)
    mkdirs = watch(
        lambda i: guest.call(Op.MKDIR, folder.nodeid, body + names(b"d%d" % i), room=128)
    )
    assert mkdirs["mkdirat"] == COUNT
    allow(mkdirs, 3)  # mkdirat, and the calls that identify a new file
    allow(watch(lambda i: guest.call(Op.UNLINK, folder.nodeid, names(b"f%d" % i))), 1)
    allow(watch(lambda i: guest.call(Op.RMDIR, folder.nodeid, names(b"d%d" % i))), 1)


def test_creating_as_a_user_switches_ids_once(watch: Watch, guest: Guest, folder: Folder) -> None:
    def create(i: int) -> None:
        body = MKDIR_IN.pack(0o755, 0) + names(b"u%d" % i)
        guest.call(Op.MKDIR, folder.nodeid, body, room=128, ids=(1000, 1000))

    calls = watch(create)
    assert sum(calls[name] for name in ("setresuid", "setresgid", "setgroups")) <= 3, dict(calls)


def test_listing_with_attributes(
    daemon: Daemon, watch: Watch, guest: Guest, folder: Folder
) -> None:
    for i in range(50):
        (folder.path / str(i)).touch()
    fh = guest.open(folder.nodeid, os.O_RDONLY, op=Op.OPENDIR)
    time.sleep(1.1)

    def read(_: int) -> None:
        body = read_in(fh=fh, size=65536)
        assert guest.call(Op.READDIRPLUS, folder.nodeid, body, room=65536)

    read(0)
    await_quiet(daemon)
    allow(watch(read), 50 + 2)  # one call for each entry, getdents64, lseek back to the start
