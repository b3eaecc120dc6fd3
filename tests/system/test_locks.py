# SPDX-License-Identifier: Apache-2.0
"""Locks that hold between two virtual machines and the host. Each mount here stands for a virtual
machine."""

import fcntl
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from guest import daemon

from tests.waiting import HANG, LOADED

from .conftest import Backend, Share, serve
from .mounted import Mounted

# Without cache=never a guest reads data from its cache although another guest has changed them.
OPTIONS = ("-o", "flock,posix_lock", "--cache=never")
WRITERS = 2  # processes in each place
TRANSACTIONS = 60

WRITER = """
import random, sqlite3, sys
path, rounds, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
for _ in range(rounds):
    base = sqlite3.connect(path, timeout=limit, isolation_level=None)
    base.execute("PRAGMA synchronous=FULL")
    base.execute("BEGIN IMMEDIATE")
    (value,) = base.execute("SELECT value FROM counter").fetchone()
    base.execute("INSERT INTO log VALUES (?, ?)", (value, random.randbytes(3000)))
    base.execute("UPDATE counter SET value = ?", (value + 1,))
    base.execute("COMMIT")
    base.close()
"""


@pytest.fixture
def places() -> Iterator[list[Path]]:
    """One directory in three places: in two virtual machines (1 and 4 queues) and on the host."""
    with ExitStack() as stack:
        first = serve(Backend("", 1, OPTIONS), stack)
        yield [first.mount, second_mount(first, stack), first.host]


def second_mount(first: Share, stack: ExitStack) -> Path:
    folder = first.host.parent / "second"
    folder.mkdir()
    argv = [*daemon.command(""), *OPTIONS]
    served = stack.enter_context(daemon.serve(argv, first.host, folder))
    return stack.enter_context(Mounted(folder, str(served.socket), "--queues", "4")).path


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 90) -> str:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out


def test_sqlite_stays_correct_under_writers_in_three_places(places: list[Path]) -> None:
    base = sqlite3.connect(places[2] / "base.db")
    assert base.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    base.executescript("CREATE TABLE counter (value); CREATE TABLE log (value UNIQUE, noise BLOB);")
    base.execute("INSERT INTO counter VALUES (0)")
    base.commit()
    base.close()
    paths = [place / "base.db" for place in places for _ in range(WRITERS)]
    for writer in [python(WRITER, path, TRANSACTIONS, HANG) for path in paths]:
        finish(writer)
    expected = len(paths) * TRANSACTIONS
    for place in places:
        base = sqlite3.connect(place / "base.db")
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert base.execute("SELECT value FROM counter").fetchone() == (expected,)
        assert base.execute("SELECT count(*) FROM log").fetchone() == (expected,)
        base.close()


LOCKER = """
import fcntl, sys, time
kind, path, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
with open(path, "r+b") as file:
    (fcntl.flock if kind == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX)
    print("got it", flush=True)
    time.sleep(seconds)
"""


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_lock_is_waited_for_from_each_place(places: list[Path], kind: str) -> None:
    (places[2] / "x").touch()
    for holder, waiter in ((0, 1), (1, 0), (2, 0), (0, 2)):
        first = python(LOCKER, kind, places[holder] / "x", 0.4)
        assert first.stdout
        assert first.stdout.readline() == "got it\n"
        start = time.monotonic()
        second = python(LOCKER, kind, places[waiter] / "x", 0)
        assert finish(second) == "got it\n"
        assert 0.1 < time.monotonic() - start < 5 * LOADED
        finish(first)


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_waiter_can_be_killed_and_a_dead_holder_lets_go(places: list[Path], kind: str) -> None:
    (places[2] / "x").touch()
    holder = python(LOCKER, kind, places[0] / "x", 60)
    assert holder.stdout
    assert holder.stdout.readline() == "got it\n"
    waiter = python(LOCKER, kind, places[1] / "x", 0)
    time.sleep(0.3)
    assert waiter.poll() is None
    waiter.kill()
    assert waiter.wait(HANG) == -signal.SIGKILL
    waiter.communicate()
    holder.kill()
    holder.communicate()
    start = time.monotonic()
    finish(python(LOCKER, kind, places[1] / "x", 0))
    assert time.monotonic() - start < 3 * LOADED


def test_a_read_lock_through_a_read_only_descriptor(places: list[Path]) -> None:
    (places[2] / "x").touch(mode=0o444)
    with (places[0] / "x").open("rb") as file, (places[2] / "x").open("r+b") as host:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.lockf(host, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_UN)
        fcntl.lockf(host, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_many_waiters_hold_nobody_up(places: list[Path]) -> None:
    (places[2] / "x").touch()
    holder = python(LOCKER, "lockf", places[0] / "x", 60)
    assert holder.stdout
    assert holder.stdout.readline() == "got it\n"
    waiters = [python(LOCKER, "lockf", places[0] / "x", 0) for _ in range(20)]
    time.sleep(0.5)
    start = time.monotonic()
    for i in range(100):
        (places[0] / f"f{i}").write_text("x")
    assert time.monotonic() - start < 5 * LOADED
    assert sum(1 for _ in places[0].iterdir()) == 101
    holder.kill()
    holder.communicate()
    for waiter in waiters:
        assert finish(waiter, 20) == "got it\n"
