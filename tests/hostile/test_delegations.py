# SPDX-License-Identifier: Apache-2.0
"""Files under a delegation of the host, and calls that wait for another reason.

Only knfsd can take a delegation. So the share lies on a FUSE mount that behaves as the host's
kernel behaves then: a call that changes names or attributes waits, and a signal ends the call with
nothing done; an open for writing breaks the delegation.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import LOADED

from .daemon import Daemon
from .driver import Frontend
from .fuse import (
    LINK_IN,
    RENAME2_IN,
    RENAME_IN,
    ROOT,
    SETATTR_IN,
    SETXATTR_IN,
    Guest,
    Op,
    Pending,
    names,
)
from .fuse_server import FlatFileSystem, served

CHANGING = (
    Op.UNLINK, Op.RENAME, Op.RENAME2, Op.LINK, Op.SETATTR, Op.SETXATTR, Op.REMOVEXATTR,
)  # fmt: skip
FATTR_MODE, FATTR_UID, FATTR_MTIME = 1, 2, 32
SECONDS = 5.0 * LOADED


class Delegating(FlatFileSystem):
    """Two files, of which "file" may be under a delegation. `breakable`: an open for writing breaks
    the delegation; otherwise the calls wait for something that no open hastens."""

    def __init__(self, breakable: bool = True) -> None:
        super().__init__({b"file": b"text", b"other": b""}, lambda n: n)
        self._breakable = breakable
        self._held: list[tuple[int, int, int, int, int, bytes]] = []  # the arguments of serve_one
        self._is_delegated = False
        self._lock = threading.Lock()
        self.interrupted = 0
        self.asked = threading.Semaphore(0)  # counts requests that make the host ask the holder

    def delegate(self) -> None:
        self._is_delegated = True

    def give_back(self) -> None:
        with self._lock:
            self._is_delegated = False
            held, self._held = self._held, []
        for request in held:
            super().serve_one(*request)

    def serve_one(
        self, fd: int, unique: int, opcode: int, node: int, uid: int, body: bytes
    ) -> None:
        with self._lock:
            is_break = self._breakable and opcode == Op.OPEN and body[0] & os.O_ACCMODE
            is_held = self._is_delegated and (opcode in CHANGING or is_break)
            if is_held:
                self._held.append((fd, unique, opcode, node, uid, body))
                if is_break or not self._breakable:
                    self.asked.release()
        if not is_held:
            super().serve_one(fd, unique, opcode, node, uid, body)

    def interrupt(self, fd: int, unique: int) -> None:
        with self._lock:
            held = [request for request in self._held if request[1] == unique]
            self._held = [request for request in self._held if request[1] != unique]
            self.interrupted += len(held)
        for _ in held:
            self.send(fd, unique, 4)  # EINTR


def setattr_of(valid: int) -> Callable[[Guest, int], Pending]:
    def submit(guest: Guest, nodeid: int) -> Pending:
        body = SETATTR_IN.pack(valid, *([0] * 15))
        return guest.submit(Op.SETATTR, nodeid, body, room=104)

    return submit


REQUESTS: dict[str, Callable[[Guest, int], Pending]] = {
    "unlink": lambda guest, _: guest.submit(Op.UNLINK, ROOT, names(b"file")),
    "rename": lambda guest, _: guest.submit(
        Op.RENAME, ROOT, RENAME_IN.pack(ROOT) + names(b"file", b"new")
    ),
    "rename2": lambda guest, _: guest.submit(
        Op.RENAME2, ROOT, RENAME2_IN.pack(ROOT, 1, 0) + names(b"file", b"new")
    ),
    "replace": lambda guest, _: guest.submit(
        Op.RENAME, ROOT, RENAME_IN.pack(ROOT) + names(b"other", b"file")
    ),
    "link": lambda guest, nodeid: guest.submit(
        Op.LINK, ROOT, LINK_IN.pack(nodeid) + names(b"new"), room=128
    ),
    "chmod": setattr_of(FATTR_MODE),
    "chown": setattr_of(FATTR_UID),
    "utimes": setattr_of(FATTR_MTIME),
    "setxattr": lambda guest, nodeid: guest.submit(
        Op.SETXATTR, nodeid, SETXATTR_IN.pack(1, 0, 0, 0) + names(b"user.x") + b"v"
    ),
    "removexattr": lambda guest, nodeid: guest.submit(Op.REMOVEXATTR, nodeid, names(b"user.x")),
}


@contextmanager
def shared(folder: Path, below: FlatFileSystem) -> Iterator[Guest]:
    with (
        served(below, folder / "mnt") as mount,
        Daemon("--xattr", share=mount) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init()
        yield guest


@pytest.mark.parametrize("name", REQUESTS)
def test_a_change_waits_and_holds_up_nobody(name: str, tmp_path: Path) -> None:
    below = Delegating()
    with shared(tmp_path, below) as guest:
        other = guest.lookup(ROOT, b"other").nodeid
        nodeid = guest.lookup(ROOT, b"file").nodeid
        below.delegate()
        try:
            waiting = REQUESTS[name](guest, nodeid)
            assert below.asked.acquire(timeout=SECONDS)
            for _ in range(20):
                assert guest.getattr(other).nlink == 1
            assert waiting.head not in guest.frontend.rings[waiting.queue].done
        finally:
            below.give_back()
        assert guest.finish(waiting).error == 0
    expected = {
        "unlink": {b"other"},
        "rename": {b"new", b"other"},
        "rename2": {b"new", b"other"},
        "replace": {b"file"},
        "link": {b"file", b"new", b"other"},
    }
    assert set(below.files) == expected.get(name, {b"file", b"other"})


@pytest.mark.parametrize("name", ["unlink", "chmod"])
def test_what_waits_for_another_reason_is_interrupted_twice_and_succeeds(
    name: str, tmp_path: Path
) -> None:
    below = Delegating(breakable=False)
    with shared(tmp_path, below) as guest:
        nodeid = guest.lookup(ROOT, b"file").nodeid
        below.delegate()
        try:
            waiting = REQUESTS[name](guest, nodeid)
            for _ in range(3):
                assert below.asked.acquire(timeout=SECONDS)
        finally:
            below.give_back()
        assert guest.finish(waiting).error == 0
    assert below.interrupted == 2
