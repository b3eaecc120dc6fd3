# SPDX-License-Identifier: Apache-2.0
"""Files under the lease of a program on the host: a request for them waits, and no other does."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import HANG

from .conftest import Folder
from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import (
    CREATE_IN,
    FATTR_SIZE,
    OPEN_IN,
    ROOT,
    SETATTR_IN,
    Entry,
    Guest,
    Op,
    Pending,
    names,
)

# Takes a lease. The program prints a line when it is to give the lease back, and gives it back at
# the next line of its input.
HOLDER = """
import fcntl, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("taken", flush=True)
signal.sigwait([signal.SIGIO])
print("asked", flush=True)
sys.stdin.readline()
"""


class Lease:
    """A write lease on a file, in a process of its own."""

    def __init__(self, path: Path) -> None:
        self._holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._line() == "taken"

    def _line(self) -> str:
        assert self._holder.stdout
        return self._holder.stdout.readline().strip()

    def await_question(self) -> None:
        assert self._line() == "asked"

    def end(self) -> None:
        if self._holder.returncode is None:
            self._holder.communicate("\n", timeout=HANG)


@contextmanager
def lease(path: Path) -> Iterator[Lease]:
    held = Lease(path)
    try:
        yield held
    finally:
        held.end()


def finish_in_time(guest: Guest, waiting: Pending, held: Lease, other: int) -> bytes:
    """The reply's payload. Before the lease is given back all other requests are served."""
    held.await_question()
    for _ in range(20):
        assert guest.getattr(other).nlink == 1
    assert waiting.head not in guest.frontend.rings[waiting.queue].done
    held.end()
    reply = guest.finish(waiting)
    assert not reply.error, errno.errorcode[reply.error]
    return reply.data


def test_an_open_waits_and_holds_up_nobody(guest: Guest, folder: Folder) -> None:
    (folder.path / "leased").write_text("text")
    (folder.path / "other").touch()
    other = guest.lookup(folder.nodeid, b"other").nodeid
    nodeid = guest.lookup(folder.nodeid, b"leased").nodeid
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        with lease(folder.path / "leased") as held:
            waiting = guest.submit(Op.OPEN, nodeid, OPEN_IN.pack(flags, 0), room=16)
            reply = finish_in_time(guest, waiting, held, other)
        fh = int.from_bytes(reply[:8], "little")
        if flags != os.O_WRONLY:
            assert guest.read(nodeid, fh, 0, 9) == b"text"
        guest.release(nodeid, fh)


def test_a_creation_of_what_exists_waits_and_holds_up_nobody(guest: Guest, folder: Folder) -> None:
    """A process on the host has made the file, so the guest asks for it to be created."""
    (folder.path / "other").touch()
    other = guest.lookup(folder.nodeid, b"other").nodeid
    (folder.path / "leased").write_text("text")
    body = CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o100644, 0o22, 0) + names(b"leased")
    with lease(folder.path / "leased") as held:
        waiting = guest.submit(Op.CREATE, folder.nodeid, body, room=144)
        data = finish_in_time(guest, waiting, held, other)
    nodeid, fh = Entry.parse(data).nodeid, int.from_bytes(data[128:136], "little")
    assert guest.read(nodeid, fh, 0, 9) == b"text"
    guest.release(nodeid, fh)


def test_a_truncation_by_name_waits_and_holds_up_nobody(guest: Guest, folder: Folder) -> None:
    (folder.path / "leased").write_text("text")
    (folder.path / "other").touch()
    other = guest.lookup(folder.nodeid, b"other").nodeid
    nodeid = guest.lookup(folder.nodeid, b"leased").nodeid
    body = SETATTR_IN.pack(FATTR_SIZE, 0, 0, 2, *([0] * 12))
    with lease(folder.path / "leased") as held:
        waiting = guest.submit(Op.SETATTR, nodeid, body, room=104)
        finish_in_time(guest, waiting, held, other)
    assert (folder.path / "leased").read_text() == "te"


def test_without_threads_it_waits_in_the_queue() -> None:
    with Daemon("--thread-pool-size=0") as daemon, Frontend(daemon.socket) as frontend:
        (daemon.share / "leased").write_text("text")
        guest = Guest(frontend.setup(1))
        guest.init()
        nodeid = guest.lookup(ROOT, b"leased").nodeid
        with lease(daemon.share / "leased") as held:
            waiting = guest.submit(Op.OPEN, nodeid, OPEN_IN.pack(os.O_RDONLY, 0), room=16)
            held.await_question()
            held.end()
            assert not guest.finish(waiting).error


def test_a_worker_that_dies_while_a_file_is_leased_opens_it_all_the_same(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    (folder.path / "leased").write_text("text")
    nodeid = guest.lookup(folder.nodeid, b"leased").nodeid
    with lease(folder.path / "leased") as held:
        waiting = guest.submit(Op.OPEN, nodeid, OPEN_IN.pack(os.O_RDONLY, 0), room=16)
        held.await_question()
        worker = daemon.the("worker", "queue 1")
        os.kill(worker, signal.SIGKILL)
        wait_until(
            lambda: daemon.titled("worker", "queue 1") not in ([], [worker]), 5, "the next worker"
        )
        held.end()
        assert not guest.finish(waiting).error
