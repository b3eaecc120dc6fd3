# SPDX-License-Identifier: Apache-2.0
"""Every system call that takes a path with every kind of path, as root and as other users.

The outcome on the bare host is right: the errno, and the content of the directory after the call.
"""

import os
import shutil
import stat
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

import pytest

from .conftest import DEEP, FOUR_QUEUES, NEVER, ONE_QUEUE, PLAIN, WRITEBACK, in_memory, shares
from .process import OTHER, OWNER, ROOT, User, acting_as, attempt, in_child
from .share import Folder, Place
from .syscalls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    access,
    link_target,
    renameat2,
    truncate,
    utimensat,
)
from .tree import make, make_dir, snapshot

NOW: Final = (1_600_000_000, 123_456_789)


def _open(flags: int, mode: int = 0o640) -> Callable[[str], None]:
    return lambda path: os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, mode))


CALLS: Final[dict[str, Callable[[str], object]]] = {
    "open for reading": _open(os.O_RDONLY),
    "open for writing": _open(os.O_WRONLY),
    "open for both": _open(os.O_RDWR),
    "open O_CREAT": _open(os.O_RDWR | os.O_CREAT),
    "open O_CREAT for reading": _open(os.O_RDONLY | os.O_CREAT),
    "open O_CREAT|O_EXCL": _open(os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "open O_CREAT|O_NOFOLLOW": _open(os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW),
    "open O_CREAT|O_DIRECTORY": _open(os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY),
    "open O_TRUNC": _open(os.O_WRONLY | os.O_TRUNC),
    "open O_TRUNC for reading": _open(os.O_RDONLY | os.O_TRUNC),
    "creat": _open(os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    "open O_APPEND": _open(os.O_WRONLY | os.O_APPEND),
    "open O_NOFOLLOW": _open(os.O_RDONLY | os.O_NOFOLLOW),
    "open O_DIRECTORY": _open(os.O_RDONLY | os.O_DIRECTORY),
    "open O_PATH": _open(os.O_PATH),
    "open O_PATH|O_NOFOLLOW": _open(os.O_PATH | os.O_NOFOLLOW),
    "open O_TMPFILE": _open(os.O_TMPFILE | os.O_RDWR),
    "open O_TMPFILE for reading": _open(os.O_TMPFILE | os.O_RDONLY),
    "open O_NOATIME": _open(os.O_RDONLY | os.O_NOATIME),
    "open O_SYNC": _open(os.O_RDWR | os.O_SYNC),
    "mkdir": lambda path: os.mkdir(path, 0o750),
    "mknod of a file": lambda path: os.mknod(path, 0o640 | stat.S_IFREG),
    "mknod of a socket": lambda path: os.mknod(path, 0o640 | stat.S_IFSOCK),
    "mknod of a device": lambda path: os.mknod(path, 0o640 | stat.S_IFCHR, os.makedev(1, 3)),
    "mkfifo": lambda path: os.mkfifo(path, 0o640),
    "symlink": lambda path: os.symlink("any target", path),
    "link to it": lambda path: os.link("file", path),
    "link of it": lambda path: os.link(path, "linked", follow_symlinks=False),
    "link of what it leads to": lambda path: link_target(path, "linked"),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rename to it": lambda path: os.rename("other", path),
    "rename of it": lambda path: os.rename(path, "renamed"),
    "rename of it to a file": lambda path: os.rename(path, "other"),
    "rename of it to a directory": lambda path: os.rename(path, "empty"),
    "rename of a directory to it": lambda path: os.rename("empty", path),
    "rename of it below itself": lambda path: os.rename(path, f"{path}/below"),
    "rename of it to its parent": lambda path: os.rename("full/sub", path),
    "exchange": lambda path: renameat2("other", path, RENAME_EXCHANGE),
    "rename without replacing": lambda path: renameat2("other", path, RENAME_NOREPLACE),
    "rename leaving a whiteout": lambda path: renameat2(path, "renamed", RENAME_WHITEOUT),
    "rename with flags that exclude": lambda path: renameat2("other", path, 3),
    "rename with unknown flags": lambda path: renameat2("other", path, 64),
    "chmod": lambda path: os.chmod(path, 0o2604),
    "chown": lambda path: os.chown(path, 1000, 1001),
    "chown of the group": lambda path: os.chown(path, -1, 1000),
    "chown of nothing": lambda path: os.chown(path, -1, -1),
    "lchown": lambda path: os.lchown(path, 1000, 1001),
    "truncate": lambda path: truncate(path, 3),
    "truncate to the same size": lambda path: truncate(path, 5),
    "truncate to less than nothing": lambda path: truncate(path, -1),
    "truncate to more than there may be": lambda path: truncate(path, (1 << 63) - 1),
    "utimensat": lambda path: utimensat(path, NOW, NOW),
    "utimensat with bad nanoseconds": lambda path: utimensat(path, (0, 1_000_000_000), NOW),
    "utimensat of a link": lambda path: utimensat(path, NOW, NOW, follow=False),
    "utime now": os.utime,
    "access": lambda path: access(path, os.F_OK),
    "access for everything": lambda path: access(path, os.R_OK | os.W_OK | os.X_OK),
    "access with a bad mode": lambda path: access(path, 8),
    "readlink": os.readlink,
    "stat": os.stat,
    "lstat": os.lstat,
    "chdir": os.chdir,
    "listdir": os.listdir,
    "statvfs": os.statvfs,
}

# Paths for which the outcome depends on the user.
PERSONAL: Final = (
    "file", "other", "empty", "full", "full/new", "full/file", "full/sub", "to-file", "missing",
    "secret/file", "secret/new", "locked", "locked/file", "locked/new", "locked/file/x",
    "sticky/owned", "sticky/foreign", "sticky/new", "n" * 255, "n" * 256,
)  # fmt: skip

PATHS: Final = (
    "file", "other", "empty", "full", "fifo", "socket", "null",
    "to-file", "to-full", "to-empty", "dangling", "loop",
    "missing", "missing/x", "file/x", "fifo/x", "loop/x", "dangling/x", "to-file/x",
    "to-full/new", "full/new", "full/sub", "full/sub/..", "full/file",
    "", ".", "..", "./file", "empty/.", "full/.", "full/..", "empty/..",
    "file/", "full/", "empty/", "missing/", "to-full/", "to-empty/", "to-file/", "dangling/",
    "secret/file", "secret/new", "locked", "locked/file", "locked/new",
    "sticky/owned", "sticky/foreign", "sticky/new",
    "n" * 255, "n" * 256, "full/" + "n" * 255, "full/" + "n" * 256, "\udcff\udc80\x01",
    "./" * 2045 + "file", "./" * 2046 + "file",  # 4094 bytes, and one path too long
    "e\u0301", " ", "a\nb", "-", "*",
)  # fmt: skip


def _populate() -> None:
    make("file", b"12345")
    make("other", b"other", 0o666)
    make_dir("empty", 0o777)
    make_dir("full", 0o777)
    make_dir("full/sub", 0o777)
    make("full/file", b"below", 0o600)
    os.mkfifo("fifo")
    os.mknod("socket", 0o666 | stat.S_IFSOCK)
    os.mknod("null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    for name, target in (("to-file", "file"), ("to-full", "full"), ("to-empty", "empty")):
        os.symlink(target, name)
    os.symlink("not-there", "dangling")
    os.symlink("loop", "loop")
    make_dir("secret", 0o700)  # other users find no name in it
    make("secret/file", b"secret", 0o666)
    make_dir("locked", 0o755)  # other users cannot create files in it
    make("locked/file", b"locked", 0o666)
    make_dir("sticky", 0o1777)
    make("sticky/owned", b"mine", 0o666)
    os.chown("sticky/owned", OWNER.uid, OWNER.gid)
    make("sticky/foreign", b"theirs", 0o666)
    os.chown("file", OWNER.uid, OWNER.gid)


class _Work:
    """A populated folder; it is created again after a call that has changed it."""

    _here: str
    _there: str

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._count = 0
        self._create()

    def run(self, call: Callable[[str], object], path: str, user: User) -> object:
        with acting_as(user):
            outcome = attempt(call, path)
        os.chdir(self._here)
        if snapshot(self._there) == self._fresh:
            return outcome
        after = snapshot(".")
        different = {
            name: (self._fresh.get(name), after.get(name))
            for name in sorted({*self._fresh, *after})
            if self._fresh.get(name) != after.get(name)
        }
        self._create()
        return outcome, different

    def _create(self) -> None:
        if self._count:
            shutil.rmtree(self._there)
        self._count += 1
        name = f"work{self._count}"
        self._here, self._there = str(self._folder.path / name), str(self._folder.host / name)
        make_dir(self._there, 0o777)  # on the host, which is faster, and before the guest knows it
        os.chdir(self._there)
        _populate()
        self._fresh = snapshot()
        os.chdir(self._here)


def _label(user: User, path: str) -> str:
    return f"uid {user.uid}: {path[:40]!r}, {len(os.fsencode(path))} bytes"


def outcomes(place: Place, name: str) -> dict[str, object]:
    """The outcomes of a call in a place, for every path and user."""
    folder = place.new_folder()
    asked = [(OTHER, path) for path in PERSONAL]
    # Names are resolved in the same way on one queue, so the short list is enough.
    if DEEP or place.setup.queues != ONE_QUEUE.queues:
        asked += [(ROOT, path) for path in PATHS] + [(OWNER, path) for path in PERSONAL]

    def run() -> dict[str, object]:
        os.umask(0o022)
        work = _Work(folder)
        return {_label(user, path): work.run(CALLS[name], path, user) for user, path in asked}

    found: dict[str, object] = in_child(run)
    # The daemon holds files that were removed on the host until the guest forgets them.
    Path("/proc/sys/vm/drop_caches").write_text("2")
    return found


@pytest.fixture(scope="module")
def wanted(host_memory: Place) -> Callable[[str], dict[str, object]]:
    """A function: `wanted(name)` is the outcomes of a call on the host."""
    return lru_cache(maxsize=None)(lambda name: outcomes(host_memory, name))


@pytest.mark.parametrize("name", CALLS)
@shares(in_memory(ONE_QUEUE), in_memory(FOUR_QUEUES), deep=(FOUR_QUEUES, NEVER, WRITEBACK, PLAIN))
def test_a_call_does_with_every_path_what_it_does_on_the_host(
    share: Place, wanted: Callable[[str], dict[str, object]], name: str
) -> None:
    expected = wanted(name)
    found = outcomes(share, name)
    differing = {label for label in found if expected[label] != found[label]}
    assert {label: found[label] for label in differing} == {
        label: expected[label] for label in differing
    }
