# SPDX-License-Identifier: Apache-2.0
"""FUSE requests built with struct, and a guest that sends them. Layouts: FUSE protocol 7.45."""

import errno
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from .driver import TIMEOUT, Frontend, Segment


class Op(IntEnum):
    """Opcodes."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


NO_REPLY = (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT)
ROOT = 1

IN_HEADER = Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen pad
OUT_HEADER = Struct("<IiQ")  # len error unique
ATTR = Struct("<QQQQQQIIIIIIIIII")
ENTRY = Struct("<QQQQII")  # nodeid generation entry_valid attr_valid, nsec of both; ATTR follows
ATTR_OUT = Struct("<QII")  # attr_valid nsec dummy; ATTR follows
GETATTR_IN = Struct("<IIQ")  # flags dummy fh
# valid pad fh size lock_owner atime mtime ctime, their nsec, mode unused uid gid unused
SETATTR_IN = Struct("<IIQQQQQQIIIIIIII")
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE = 1 << 0, 1 << 1, 1 << 2, 1 << 3  # bits of `valid`
FATTR_FH = 1 << 6
OPEN_IN = Struct("<II")  # flags open_flags
OPEN_OUT = Struct("<QIi")  # fh open_flags backing_id
CREATE_IN = Struct("<IIII")  # flags mode umask open_flags
READ_IN = Struct("<QQIIQII")  # fh offset size read_flags lock_owner flags pad
WRITE_IN = Struct("<QQIIQII")  # fh offset size write_flags lock_owner flags pad
WRITE_OUT = Struct("<II")
RELEASE_IN = Struct("<QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN = Struct("<QIIQ")  # fh unused pad lock_owner
FSYNC_IN = Struct("<QII")  # fh flags pad
MKNOD_IN = Struct("<IIII")  # mode rdev umask pad
MKDIR_IN = Struct("<II")  # mode umask
RENAME_IN = Struct("<Q")  # newdir
RENAME2_IN = Struct("<QII")  # newdir flags pad
LINK_IN = Struct("<Q")  # nodeid
SETXATTR_IN = Struct("<IIII")  # size flags setxattr_flags pad
SETXATTR_COMPAT_IN = Struct("<II")
GETXATTR_IN = Struct("<II")  # size pad; also the reply to size 0
LK_IN = Struct("<QQQQIIII")  # fh owner start end type pid lk_flags pad
LK_OUT = Struct("<QQII")  # start end type pid
ACCESS_IN = Struct("<II")
INIT_IN = Struct("<IIIII44x")  # major minor max_readahead flags flags2
# major minor max_readahead flags max_background congestion max_write time_gran max_pages
# map_alignment flags2 max_stack_depth request_timeout
INIT_OUT = Struct("<IIIIHHIIHHIIH22x")
IOCTL_IN = Struct("<QIIQII")  # fh flags cmd arg in_size out_size
IOCTL_OUT = Struct("<iIII")  # result flags in_iovs out_iovs
FALLOCATE_IN = Struct("<QQQII")  # fh offset length mode pad
LSEEK_IN = Struct("<QQII")  # fh offset whence pad
U64 = Struct("<Q")
COPY_IN = Struct("<QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
STATX_IN = Struct("<IIQII")  # getattr_flags reserved fh sx_flags sx_mask
FORGET_IN = Struct("<Q")
BATCH_FORGET_IN = Struct("<II")  # count dummy
FORGET_ONE = Struct("<QQ")  # nodeid nlookup
DIRENT = Struct("<QQII")  # ino off namelen type; the name follows, padded to 8
STATFS_OUT = Struct("<QQQQQIIII24x")  # blocks bfree bavail files ffree bsize namelen frsize pad

EXT_GROUPS = 32
CREATE_SUPP_GROUP, SETXATTR_EXT, INIT_EXT = 1 << 34, 1 << 29, 1 << 30
# What Linux 6.12 offers (flags | flags2 << 32).
LINUX_FLAGS = 0x7BFFFFFB | 0x1FF << 32


class Attr(NamedTuple):
    """struct fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int

    @property
    def owner(self) -> tuple[int, int]:
        """User id and group id."""
        return self.uid, self.gid


class Entry(NamedTuple):
    """struct fuse_entry_out."""

    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    attr: Attr

    @classmethod
    def parse(cls, data: bytes) -> "Entry":
        nodeid, generation, entry_valid, attr_valid, *_ = ENTRY.unpack_from(data)
        return cls(
            nodeid, generation, entry_valid, attr_valid, Attr(*ATTR.unpack_from(data, ENTRY.size))
        )


class Dirent(NamedTuple):
    """struct fuse_dirent with its name, and the entry that READDIRPLUS puts before it."""

    name: bytes
    ino: int
    off: int
    kind: int
    entry: Entry | None


class InitReply(NamedTuple):
    """struct fuse_init_out."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int
    flags2: int
    max_stack_depth: int
    request_timeout: int


@dataclass
class Pending:
    """A request that was sent and has no reply yet."""

    op: int
    unique: int
    queue: int
    head: int
    buffers: list[tuple[int, int]]  # guest memory to free when the reply has come
    writable: list[Segment]


class Reply(NamedTuple):
    """A FUSE reply: its errno (0: success) and what follows the out header."""

    error: int
    data: bytes


def cut(gpa: int, size: int, pieces: Sequence[int], writable: bool) -> list[Segment]:
    """`size` bytes as segments with the lengths in `pieces`, the last length repeated."""
    segments: list[Segment] = []
    at = 0
    for i in itertools.count():
        here = min(size - at, pieces[min(i, len(pieces) - 1)])
        if here <= 0:
            return segments
        segments.append(Segment(gpa + at, here, writable))
        at += here
    raise AssertionError


def names(*parts: bytes) -> bytes:
    return b"".join(part + b"\0" for part in parts)


def read_in(
    *,
    fh: int,
    offset: int = 0,
    size: int,
    read_flags: int = 0,
    lock_owner: int = 0,
    flags: int = 0,
    pad: int = 0,
) -> bytes:
    """struct fuse_read_in, of READ, READDIR and READDIRPLUS. `flags`: the flags of the open
    file."""
    return READ_IN.pack(fh, offset, size, read_flags, lock_owner, flags, pad)


def write_in(
    *,
    fh: int,
    offset: int = 0,
    size: int,
    write_flags: int = 0,
    lock_owner: int = 0,
    flags: int = 0,
) -> bytes:
    """struct fuse_write_in; `size` bytes follow. `flags`: the flags of the open file."""
    return WRITE_IN.pack(fh, offset, size, write_flags, lock_owner, flags, 0)


class Guest:
    """A FUSE client over a Frontend whose rings run. Chains have Linux' layout by default."""

    def __init__(self, frontend: Frontend, indirect: bool = True) -> None:
        self.frontend = frontend
        self.memory = frontend.memory
        self.indirect = indirect
        self.flags = 0  # the flags agreed at INIT, flags | flags2 << 32
        self._unique = itertools.count(2, 2)

    # Requests.

    def submit(
        self,
        op: int,
        nodeid: int = ROOT,
        body: bytes = b"",
        *,
        room: int = 4096,
        queue: int = 1,
        ids: tuple[int, int] = (0, 0),
        pieces: Sequence[int] = (),
        extension: bytes = b"",
        kick: bool = True,
    ) -> Pending:
        """Send a request with `room` bytes for the reply's payload.

        `pieces` are the lengths of the segments that both directions are cut into.
        """
        unique = next(self._unique)
        header = IN_HEADER.pack(
            IN_HEADER.size + len(body) + len(extension),
            op, unique, nodeid, *ids, os.getpid(), len(extension) // 8, 0,
        )  # fmt: skip
        return self.submit_raw(
            header + body + extension,
            -1 if op in NO_REPLY else room,
            queue=queue,
            pieces=pieces,
            kick=kick,
            op=op,
            unique=unique,
        )

    def submit_raw(
        self,
        request: bytes,
        room: int,
        *,
        queue: int = 1,
        pieces: Sequence[int] = (),
        kick: bool = True,
        op: int = 0,
        unique: int = 0,
    ) -> Pending:
        """Send any bytes as a request; room -1: the chain has no writable part at all."""
        ring = self.frontend.rings[queue]
        gpa = self.memory.alloc(max(len(request), 1))
        self.memory.write(gpa, request)
        buffers = [(gpa, max(len(request), 1))]
        segments = cut(gpa, len(request), pieces or (IN_HEADER.size, max(1, len(request))), False)
        writable: list[Segment] = []
        if room >= 0:
            size = OUT_HEADER.size + room
            gpa = self.memory.alloc(size)
            buffers.append((gpa, size))
            writable = cut(gpa, size, pieces or (OUT_HEADER.size, max(1, room)), True)
        head = ring.submit([*segments, *writable], indirect=self.indirect)
        ring.publish()
        if kick:
            ring.kick()
        return Pending(op, unique, queue, head, buffers, writable)

    def used_bytes(self, pending: Pending, timeout: float = TIMEOUT) -> bytes:
        """Wait for a request; return the number of bytes that the device says it wrote."""
        used = self.frontend.rings[pending.queue].wait(pending.head, timeout)
        data = b"".join(self.memory.read(s.gpa, s.size) for s in pending.writable)
        assert used <= len(data), f"used length {used} of {len(data)} writable bytes"
        for buffer in pending.buffers:
            self.memory.free(*buffer)
        return data[:used]

    def finish(self, pending: Pending, timeout: float = TIMEOUT) -> Reply:
        """Wait for a reply and check that its length is exact (Linux >= 7.1 checks that)."""
        data = self.used_bytes(pending, timeout)
        if pending.op in NO_REPLY:
            assert data == b"", "FORGET and INTERRUPT have no reply"
            return Reply(0, b"")
        assert len(data) >= OUT_HEADER.size, f"{Op(pending.op).name}: {len(data)} bytes of reply"
        length, error, unique = OUT_HEADER.unpack_from(data)
        assert length == len(data), f"out header says {length}, used length is {len(data)}"
        assert unique == pending.unique
        assert -4096 < error <= 0
        assert error == 0 or length == OUT_HEADER.size
        return Reply(-error, data[OUT_HEADER.size :])

    def ask(
        self,
        op: int,
        nodeid: int = ROOT,
        body: bytes = b"",
        *,
        room: int = 4096,
        queue: int = 1,
        ids: tuple[int, int] = (0, 0),
        pieces: Sequence[int] = (),
        extension: bytes = b"",
    ) -> Reply:
        """Send a request and wait for its reply."""
        return self.finish(
            self.submit(
                op, nodeid, body, room=room, queue=queue, ids=ids, pieces=pieces,
                extension=extension,
            )
        )  # fmt: skip

    def call(
        self,
        op: int,
        nodeid: int = ROOT,
        body: bytes = b"",
        *,
        room: int = 4096,
        queue: int = 1,
        ids: tuple[int, int] = (0, 0),
        pieces: Sequence[int] = (),
        extension: bytes = b"",
    ) -> bytes:
        """As ask(), but an errno is raised as an OSError."""
        reply = self.ask(
            op, nodeid, body, room=room, queue=queue, ids=ids, pieces=pieces, extension=extension
        )
        if reply.error:
            raise OSError(reply.error, f"{Op(op).name}: {os.strerror(reply.error)}")
        return reply.data

    # Operations.

    def init(self, minor: int = 41, flags: int = LINUX_FLAGS, queue: int = 1) -> InitReply:
        body = INIT_IN.pack(7, minor, 0x20000, flags & 0xFFFF_FFFF, flags >> 32)
        got = InitReply(*INIT_OUT.unpack(self.call(Op.INIT, 0, body, room=64, queue=queue)))
        self.flags = got.flags | got.flags2 << 32
        return got

    def lookup(self, parent: int, name: bytes, queue: int = 1) -> Entry:
        return Entry.parse(self.call(Op.LOOKUP, parent, names(name), room=128, queue=queue))

    def forget(self, nodeid: int, count: int = 1, queue: int = 0) -> None:
        self.ask(Op.FORGET, nodeid, FORGET_IN.pack(count), queue=queue)

    def getattr(self, nodeid: int, fh: int | None = None) -> Attr:
        body = GETATTR_IN.pack(fh is not None, 0, fh or 0)
        data = self.call(Op.GETATTR, nodeid, body, room=104)
        return Attr(*ATTR.unpack_from(data, ATTR_OUT.size))

    def mkdir(self, parent: int, name: bytes, mode: int = 0o755) -> Entry:
        return Entry.parse(self.call(Op.MKDIR, parent, MKDIR_IN.pack(mode, 0) + names(name)))

    def create(
        self, parent: int, name: bytes, flags: int = os.O_RDWR, mode: int = 0o644, queue: int = 1
    ) -> tuple[Entry, int]:
        """Create and open a file; return its entry and fh."""
        body = CREATE_IN.pack(flags | os.O_CREAT, 0o100000 | mode, 0, 0) + names(name)
        data = self.call(Op.CREATE, parent, body, room=144, queue=queue)
        assert len(data) == 144
        return Entry.parse(data), OPEN_OUT.unpack_from(data, 128)[0]

    def open(self, nodeid: int, flags: int = os.O_RDWR, queue: int = 1, op: int = Op.OPEN) -> int:
        data = self.call(op, nodeid, OPEN_IN.pack(flags, 0), room=16, queue=queue)
        return int(OPEN_OUT.unpack(data)[0])

    def release(self, nodeid: int, fh: int, queue: int = 1, op: int = Op.RELEASE) -> None:
        self.call(op, nodeid, RELEASE_IN.pack(fh, 0, 0, 0), queue=queue)

    def read(
        self,
        nodeid: int,
        fh: int,
        offset: int,
        size: int,
        *,
        queue: int = 1,
        pieces: Sequence[int] = (),
    ) -> bytes:
        body = read_in(fh=fh, offset=offset, size=size)
        return self.call(Op.READ, nodeid, body, room=size, queue=queue, pieces=pieces)

    def write(
        self,
        nodeid: int,
        fh: int,
        offset: int,
        data: bytes,
        *,
        queue: int = 1,
        pieces: Sequence[int] = (),
    ) -> int:
        body = write_in(fh=fh, offset=offset, size=len(data)) + data
        reply = self.call(Op.WRITE, nodeid, body, room=8, queue=queue, pieces=pieces)
        return int(WRITE_OUT.unpack(reply)[0])

    def readdir(
        self, nodeid: int, fh: int, offset: int, size: int, *, plus: bool = False, queue: int = 1
    ) -> list[Dirent]:
        """One READDIR or READDIRPLUS of up to `size` bytes."""
        op = Op.READDIRPLUS if plus else Op.READDIR
        body = read_in(fh=fh, offset=offset, size=size)
        return parse_dirents(self.call(op, nodeid, body, room=size, queue=queue), plus)

    def list(
        self, nodeid: int, size: int = 4096, *, plus: bool = False, queue: int = 1
    ) -> "list[Dirent]":
        """Open a directory, read all of it, close it."""
        fh = self.open(nodeid, os.O_RDONLY | os.O_DIRECTORY, op=Op.OPENDIR)
        found: list[Dirent] = []
        offset = 0
        while part := self.readdir(nodeid, fh, offset, size, plus=plus, queue=queue):
            found += part
            offset = part[-1].off
        self.release(nodeid, fh, op=Op.RELEASEDIR)
        return found


def parse_dirents(data: bytes, plus: bool) -> list[Dirent]:
    found, at = [], 0
    while at < len(data):
        entry = None
        if plus:
            entry = Entry.parse(data[at : at + 128])
            at += 128
        ino, off, length, kind = DIRENT.unpack_from(data, at)
        at += DIRENT.size
        name = data[at : at + length]
        assert len(name) == length, "an entry is cut off"
        assert 0 not in name
        found.append(Dirent(name, ino, off, kind, entry))
        at += (length + 7) // 8 * 8
        assert at <= len(data), "the padding after a name is cut off"
    return found


def expect(error: int, reply: Reply) -> None:
    """Assert that a request failed with this errno."""
    got = errno.errorcode.get(reply.error, reply.error) if reply.error else "success"
    assert reply.error == error, f"{got}, not {errno.errorcode[error]}"
