# SPDX-License-Identifier: Apache-2.0
"""Only what was agreed is read from a request: all other bytes may be garbage.

Guests leave padding as it is in their memory, and each FUSE minor version has given a name to
some of that padding. So each request is sent with zeros and with garbage in every byte that the
minor version and the INIT flags of its session give no meaning; both must do the same.
"""

import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .conftest import OPTIONS
from .daemon import Daemon
from .driver import Frontend
from .fuse import (
    FATTR_SIZE,
    IN_HEADER,
    INIT_EXT,
    LINUX_FLAGS,
    NO_REPLY,
    OPEN_OUT,
    ROOT,
    U64,
    Entry,
    Guest,
    Op,
    Reply,
    names,
)

DONT_MASK, KILLPRIV, SETXATTR_EXT = 1 << 6, 1 << 28, 1 << 29
SECURITY_CTX, SUPP_GROUP = 1 << 32, 1 << 34
WRITE_KILL, WRITE_KILL_SINCE = 4, 31  # FUSE_WRITE_KILL_SUIDGID
EVERY_MINOR = range(27, 46)
# INIT flags, and two minor versions to try them with: before and after the fields came that belong
# to the flags.
OFFERS: dict[str, tuple[int, Iterable[int]]] = {
    "nothing": (0, EVERY_MINOR),
    "everything": (LINUX_FLAGS, EVERY_MINOR),
    "umask": (DONT_MASK, (27, 45)),
    "killpriv": (KILLPRIV, (32, 33, 45)),
    "setxattr": (SETXATTR_EXT, (32, 33, 45)),
    "labels": (INIT_EXT | SECURITY_CTX, (35, 36, 37, 38, 45)),
    "groups": (INIT_EXT | SUPP_GROUP, (37, 38, 45)),
}
SETID = stat.S_ISUID | stat.S_ISGID | 0o755
USER = (1000, 1000)

Fill = Callable[[int], bytes]
_numbers = itertools.count()
FILLS: dict[str, Fill] = {
    "zeros": bytes,
    "ones": lambda size: b"\xff" * size,
    "small": lambda size: (b"\1" + bytes(3)) * (size // 4) + b"\1" * (size % 4),
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(*OPTIONS, "--security-label=auto", "--modcaps=+sys_admin") as running:
        yield running


def u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def u64(*values: int) -> bytes:
    return b"".join(map(U64.pack, values))


class Sender:
    """Sends the requests of a session; `fill` makes the bytes that have no meaning."""

    def __init__(self, guest: Guest, minor: int, fill: Fill) -> None:
        self._guest, self._minor, self.fill = guest, minor, fill
        self.seen: list[tuple[str, int, int]] = []  # opcode, errno, bytes of the reply

    def has(self, since: int, flags: int = 0) -> bool:
        """Has the session agreed on this minor version, and on one of these flags?"""
        return self._minor >= since and (not flags or bool(self._guest.flags & flags))

    def word(self, since: int, flags: int = 0) -> bytes:
        """A field of 32 bits; before its minor version the field is padding, which `fill` makes."""
        return u32(0) if self.has(since, flags) else self.fill(4)

    def ask(self, op: Op, nodeid: int, *parts: bytes) -> Reply:
        body = b"".join(parts)
        extensions = self.has(38, SECURITY_CTX | SUPP_GROUP)
        unique = next(self._guest._unique)  # noqa: SLF001
        header = IN_HEADER.pack(IN_HEADER.size + len(body), op, unique, nodeid, *USER, 1, 0, 0)
        end = header[:36] + (bytes(2) if extensions else self.fill(2)) + self.fill(2)
        room = -1 if op in NO_REPLY else 4096
        pending = self._guest.submit_raw(end + body, room, op=op, unique=unique)
        reply = self._guest.finish(pending)
        # A listing has other inode numbers and offsets each time, so only its length is compared.
        self.seen.append((op.name, reply.error, len(reply.data)))
        return reply

    def lookup(self, parent: int, name: bytes) -> int:
        return Entry.parse(self.ask(Op.LOOKUP, parent, names(name)).data).nodeid

    def open(self, nodeid: int, flags: int, op: Op = Op.OPEN) -> int:
        reply = self.ask(op, nodeid, u32(flags), self.word(33, KILLPRIV))
        return int(OPEN_OUT.unpack(reply.data)[0])


def make_tree(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)
    for name in ("file", "cut", "created", "sized", "written", "old", "gone", "unlinked"):
        (path / name).write_bytes(b"content")
        (path / name).chmod(SETID)
    (path / "dir").mkdir()
    (path / "dir" / "inside").touch()
    (path / "removed").mkdir()
    (path / "link").symlink_to("target")


def seen_on_host(path: Path) -> list[tuple[str, int, int, bytes]]:
    """Everything that a request may have changed: names, modes, owners, contents."""
    found = []
    for item in sorted(path.rglob("*")):
        st = item.lstat()
        content = item.read_bytes() if stat.S_ISREG(st.st_mode) else b""
        found.append((str(item.relative_to(path)), st.st_mode, st.st_uid, content))
    return found


def setattr_size(s: Sender, nodeid: int, size: int) -> None:
    """SETATTR of the size, from a guest that fills in what `valid` names and no other field
    (Zephyr)."""
    kill = 0 if s.has(33, KILLPRIV) else int.from_bytes(s.fill(4), "little") & 1 << 11
    body = u32(FATTR_SIZE | kill), s.fill(4), s.fill(8), u64(size), s.fill(64)
    s.ask(Op.SETATTR, nodeid, *body)


def write(s: Sender, nodeid: int, fh: int, offset: int, data: bytes) -> None:
    kill = 0 if s.has(WRITE_KILL_SINCE) else int.from_bytes(s.fill(4), "little") & WRITE_KILL
    where = u64(fh, offset) + u32(len(data), kill)
    s.ask(Op.WRITE, nodeid, where, s.fill(8), u32(os.O_RDWR), s.fill(4), data)


def setxattr(s: Sender, nodeid: int, value: bytes) -> None:
    more = u32(0) + s.fill(4) if s.has(33, SETXATTR_EXT) else b""
    s.ask(Op.SETXATTR, nodeid, u32(len(value), 0), more, names(b"user.x"), value)


def create(s: Sender, parent: int, name: bytes, flags: int, op: Op = Op.CREATE) -> tuple[int, int]:
    umask, open_flags = s.word(12, DONT_MASK), s.word(33, KILLPRIV)
    mode = stat.S_IFREG | 0o666
    data = s.ask(op, parent, u32(flags, mode), umask, open_flags, names(name)).data
    return Entry.parse(data).nodeid, OPEN_OUT.unpack_from(data, 128)[0]


def use_names(s: Sender, root: int) -> None:
    """Send every opcode that takes names."""
    s.ask(Op.MKNOD, root, u32(stat.S_IFIFO | 0o666, 0), s.word(12, DONT_MASK), s.fill(4),
          names(b"fifo"))  # fmt: skip
    s.ask(Op.MKDIR, root, u32(0o777), s.word(12, DONT_MASK), names(b"new"))
    s.ask(Op.SYMLINK, root, names(b"made", b"target"))
    s.ask(Op.UNLINK, root, names(b"unlinked"))
    s.ask(Op.RMDIR, root, names(b"removed"))
    s.ask(Op.RENAME, root, u64(root), names(b"old", b"moved"))
    s.ask(Op.RENAME2, root, u64(root), u32(0), s.fill(4), names(b"gone", b"away"))
    s.ask(Op.LINK, root, u64(s.lookup(root, b"file")), names(b"hard"))
    for name, flags in ((b"fresh", os.O_RDWR), (b"created", os.O_RDWR | os.O_TRUNC)):
        nodeid, fh = create(s, root, name, flags)
        s.ask(Op.RELEASE, nodeid, u64(fh), s.fill(4), u32(0), s.fill(8))
    nodeid, fh = create(s, root, b"", os.O_RDWR, Op.TMPFILE)
    s.ask(Op.RELEASE, nodeid, u64(fh), s.fill(4), u32(0), s.fill(8))


def use_inodes(s: Sender, root: int) -> None:
    """Send every opcode that takes an inode and no open file."""
    file = s.lookup(root, b"file")
    s.ask(Op.GETATTR, file, u32(0), s.fill(4), s.fill(8))
    s.ask(Op.STATX, file, u32(0), s.fill(4), s.fill(8), u32(0, 0xFFF))
    setattr_size(s, s.lookup(root, b"sized"), 3)
    s.ask(Op.READLINK, s.lookup(root, b"link"))
    s.ask(Op.READLINK, s.lookup(root, b"link"), s.fill(260))  # Windows
    s.ask(Op.STATFS, file)
    s.ask(Op.ACCESS, file, u32(os.R_OK), s.fill(4))
    s.ask(Op.SYNCFS, root, s.fill(8))
    setxattr(s, file, b"value")
    s.ask(Op.GETXATTR, file, u32(64), s.fill(4), names(b"user.x"))
    s.ask(Op.LISTXATTR, file, u32(0), s.fill(4))
    s.ask(Op.REMOVEXATTR, file, names(b"user.x"))
    s.ask(Op.FORGET, file, u64(1))
    s.ask(Op.BATCH_FORGET, 0, u32(1), s.fill(4), u64(file, 1))


def use_files(s: Sender, root: int) -> None:
    """Send every opcode that takes an open file."""
    nodeid = s.lookup(root, b"written")
    s.open(s.lookup(root, b"cut"), os.O_WRONLY | os.O_TRUNC)
    fh = s.open(nodeid, os.O_RDWR)
    write(s, nodeid, fh, 2, b"new")
    s.ask(Op.READ, nodeid, u64(fh, 0), u32(64), s.fill(4), s.fill(8), s.fill(4), s.fill(4))
    s.ask(Op.FSYNC, nodeid, u64(fh), u32(0), s.fill(4))
    s.ask(Op.FALLOCATE, nodeid, u64(fh, 0, 100), u32(0), s.fill(4))
    s.ask(Op.LSEEK, nodeid, u64(fh, 0), u32(os.SEEK_END), s.fill(4))
    for op in (Op.COPY_FILE_RANGE, Op.COPY_FILE_RANGE_64):
        s.ask(op, nodeid, u64(fh, 0, nodeid, fh, 50, 4, 0))
    lock = u64(fh, 7, 0, 10) + u32(1, 1, 0)  # F_WRLCK
    for op in (Op.GETLK, Op.SETLK, Op.SETLKW):
        s.ask(op, nodeid, lock, s.fill(4))
    s.ask(Op.INTERRUPT, 0, u64(12345))
    s.ask(Op.FLUSH, nodeid, u64(fh), s.fill(8), u64(7))
    s.ask(Op.IOCTL, nodeid, u64(fh), u32(0, 0x80086601), s.fill(8), u32(0, 8))  # FS_IOC_GETFLAGS
    s.ask(Op.RELEASE, nodeid, u64(fh), s.fill(4), u32(0), s.fill(8))
    use_directory(s, s.lookup(root, b"dir"))


def use_directory(s: Sender, nodeid: int) -> None:
    fh = s.open(nodeid, os.O_RDONLY, Op.OPENDIR)
    for op in (Op.READDIR, Op.READDIRPLUS):
        s.ask(op, nodeid, u64(fh, 0), u32(4096), s.fill(4), s.fill(8), s.fill(4), s.fill(4))
    s.ask(Op.FSYNCDIR, nodeid, u64(fh), u32(0), s.fill(4))
    s.ask(Op.RELEASEDIR, nodeid, u64(fh), s.fill(4), u32(0), s.fill(8))


class Outcome(NamedTuple):
    """The outcome of all requests in one folder."""

    seen: list[tuple[str, int, int]]
    on_host: list[tuple[str, int, int, bytes]]


def outcome(guest: Guest, daemon: Daemon, minor: int, fill: str) -> Outcome:
    path = daemon.share / f"{next(_numbers):06}"
    make_tree(path)
    sender = Sender(guest, minor, FILLS[fill])
    root = sender.lookup(ROOT, path.name.encode())
    for use in (use_names, use_inodes, use_files):
        use(sender, root)
    return Outcome(sender.seen, seen_on_host(path))


@pytest.mark.parametrize("offer", OFFERS)
def test_what_was_not_agreed_is_not_read(frontend: Frontend, daemon: Daemon, offer: str) -> None:
    flags, minors = OFFERS[offer]
    for minor in minors:
        guest = Guest(frontend)
        guest.init(minor, flags)
        wanted, *others = (outcome(guest, daemon, minor, fill) for fill in FILLS)
        assert not any(error for _, error, _ in wanted.seen)
        for other in others:
            assert other == wanted, minor


# By cache mode and kind of file: FOPEN_* flags and the minor versions that introduced them.
OPEN_FLAGS = {
    "file, auto": ("auto", Op.OPEN, {1 << 5: 35}),  # NOFLUSH
    "file, never": ("never", Op.OPEN, {1 << 5: 35, 1 << 6: 38}),  # PARALLEL_DIRECT_WRITES
    "directory, always": ("always", Op.OPENDIR, {1 << 3: 28}),  # CACHE_DIR
}


@pytest.mark.parametrize("what", OPEN_FLAGS)
def test_an_open_file_has_no_flags_that_the_guest_does_not_know(what: str) -> None:
    cache, op, flags = OPEN_FLAGS[what]
    with Daemon(f"--cache={cache}") as daemon, Frontend(daemon.socket) as frontend:
        (daemon.share / "file").touch()
        guest = Guest(frontend.setup(1))
        for minor in EVERY_MINOR:
            guest.init(minor)
            nodeid = guest.lookup(ROOT, b"file").nodeid if op == Op.OPEN else ROOT
            opened = OPEN_OUT.unpack(guest.call(op, nodeid, u32(os.O_RDONLY, 0)))[1]
            for flag, since in flags.items():
                assert bool(opened & flag) == (minor >= since), (minor, flag)
