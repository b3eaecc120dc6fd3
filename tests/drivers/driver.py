# SPDX-License-Identifier: Apache-2.0
"""The common part of the guests' drivers, which sends requests and checks replies.

Drivers differ in three things: the features that they offer at INIT, the layout of their requests
in descriptors, and the content of bytes that they do not set. Each module here is one driver,
written after the source of that driver. Its `use()` is a session as that guest runs it, from INIT
to the last request. `use()` checks the replies as the guest does, and the share on the host.
"""

import errno
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tests.hostile.driver import Frontend, Segment
from tests.hostile.fuse import (
    ATTR,
    ATTR_OUT,
    FORGET_IN,
    GETATTR_IN,
    IN_HEADER,
    INIT_OUT,
    OPEN_IN,
    OPEN_OUT,
    OUT_HEADER,
    RELEASE_IN,
    ROOT,
    STATFS_OUT,
    WRITE_OUT,
    Attr,
    Dirent,
    Entry,
    InitReply,
    Op,
    names,
    parse_dirents,
    read_in,
    write_in,
)

INIT_SHORT, INIT_LONG = 16, 64  # bytes of struct fuse_init_in before FUSE 7.36, and since 7.36
INIT_ROOM = 64
ENTRY_ROOM, ATTR_ROOM, OPEN_ROOM = 128, 104, 16
ERRNO_MAX = 4095

# Flags of INIT: flags | flags2 << 32.
ASYNC_READ, POSIX_LOCKS = 1 << 0, 1 << 1
DO_READDIRPLUS, READDIRPLUS_AUTO, MAX_PAGES = 1 << 13, 1 << 14, 1 << 22


class Driver:
    """One guest's driver. A request has readable pieces (`parts`) and writable pieces (`room`, the
    size of each in bytes)."""

    SOURCE: ClassVar[str]  # the source that the module was written after
    MINOR: ClassVar[int] = 31
    FLAGS: ClassVar[int] = 0
    INIT_BYTES: ClassVar[int] = INIT_SHORT
    INIT_NODEID: ClassVar[int] = 0
    QUEUE: ClassVar[int] = 1
    FORGET_QUEUE: ClassVar[int] = 1

    def __init__(self, frontend: Frontend, share: Path) -> None:
        self.frontend = frontend
        self.memory = frontend.memory
        self.share = share
        self._unique = itertools.count(1)

    def use(self) -> None:
        """Run a session, from INIT to its last request."""
        raise NotImplementedError

    # Methods that drivers override.

    def unique(self) -> int:
        return next(self._unique)

    def ids(self) -> tuple[int, int, int]:
        """uid, gid and pid of a request that creates nothing."""
        return 0, 0, 1

    def last_words(self) -> tuple[int, int]:
        """The last two words of 16 bits of the header: total_extlen, which was padding before FUSE
        7.38; and padding."""
        return 0, 0

    def lay_out(self, header: bytes, parts: Sequence[bytes]) -> list[bytes]:
        """The readable descriptors. By default the header and each argument have their own."""
        return [header, *parts]

    def lay_out_reply(self, room: Sequence[int]) -> list[int]:
        """The sizes of the writable descriptors, in bytes."""
        return [OUT_HEADER.size, *room]

    # Requests.

    def send(
        self,
        op: int,
        nodeid: int,
        *parts: bytes,
        room: Sequence[int] | None = (),
        ids: tuple[int, int] | None = None,
        counted: int | None = None,
        queue: int | None = None,
    ) -> tuple[int, bytes]:
        """Send a request and wait; return errno (0: success) and what follows the out header.

        If `room` is None, the request has no writable descriptor. `counted` replaces the length of
        the arguments in the header, for a driver that gives a wrong one.
        """
        parts = tuple(part for part in parts if part)
        size = IN_HEADER.size + (sum(map(len, parts)) if counted is None else counted)
        uid, gid, pid = self.ids() if ids is None else (*ids, 1)
        unique = self.unique()
        header = IN_HEADER.pack(size, op, unique, nodeid, uid, gid, pid, *self.last_words())
        readable = [self._readable(piece) for piece in self.lay_out(header, parts)]
        sizes = [] if room is None else self.lay_out_reply([piece for piece in room if piece])
        writable = [self._writable(piece) for piece in sizes]
        data = self._exchange([*readable, *writable], self.QUEUE if queue is None else queue)
        if op in (Op.FORGET, Op.BATCH_FORGET):
            assert not data, "a FORGET was answered"
            return 0, b""
        return self._judge(data, unique)

    def _readable(self, data: bytes) -> Segment:
        gpa = self.memory.alloc(len(data))
        self.memory.write(gpa, data)
        return Segment(gpa, len(data))

    def _writable(self, size: int) -> Segment:
        gpa = self.memory.alloc(size)
        self.memory.write(gpa, b"\xa5" * size)
        return Segment(gpa, size, writable=True)

    def _exchange(self, segments: Sequence[Segment], queue: int) -> bytes:
        """Put a chain into a ring; return the bytes that the device has written, by its used
        length."""
        ring = self.frontend.rings[queue]
        head = ring.submit(segments, indirect=False)
        ring.publish()
        ring.kick()
        used = ring.wait(head)
        data = b"".join(self.memory.read(s.gpa, s.size) for s in segments if s.writable)
        assert used <= len(data)
        for segment in segments:
            self.memory.free(segment.gpa, segment.size)
        return data[:used]

    @staticmethod
    def _judge(data: bytes, unique: int) -> tuple[int, bytes]:
        assert len(data) >= OUT_HEADER.size, "no reply header"
        length, error, echoed = OUT_HEADER.unpack_from(data)
        assert length == len(data), f"the header says {length}, the used length is {len(data)}"
        assert echoed == unique
        assert -ERRNO_MAX <= error <= 0
        return -error, data[OUT_HEADER.size :]

    def ask(
        self, op: int, nodeid: int, *parts: bytes, room: Sequence[int] = (), exact: bool = True,
        ids: tuple[int, int] | None = None,
    ) -> bytes:  # fmt: skip
        """Send a request that must succeed; with `exact` the reply must fill its room."""
        error, data = self.send(op, nodeid, *parts, room=room, ids=ids)
        name = Op(op).name
        assert not error, f"{name} of node {nodeid}: {errno.errorcode.get(error, error)}"
        assert not exact or len(data) == sum(room), f"{name}: {len(data)} bytes of {sum(room)}"
        return data

    def refused(self, expected: int, op: int, nodeid: int, *parts: bytes, room: int = 128) -> None:
        """Send a request that must fail with the errno `expected`."""
        error, _ = self.send(op, nodeid, *parts, room=[room])
        assert error == expected, f"{errno.errorcode.get(error, error)}"

    # Operations that differ between drivers only in their layout.

    def init_body(self) -> bytes:
        words = (7, self.MINOR, 0, self.FLAGS & 0xFFFFFFFF, self.FLAGS >> 32)
        return b"".join(word.to_bytes(4, "little") for word in words).ljust(INIT_LONG, b"\0")[
            : self.INIT_BYTES
        ]

    def init(self) -> InitReply:
        """Send INIT, and check its reply for what every driver checks."""
        data = self.ask(Op.INIT, self.INIT_NODEID, self.init_body(), room=[INIT_ROOM])
        reply = InitReply(*INIT_OUT.unpack(data))
        assert reply.major == 7
        assert reply.minor == min(self.MINOR, 45)
        assert (reply.flags | reply.flags2 << 32) & ~self.FLAGS == 0, "a flag that was not offered"
        assert reply.max_write >= 4096
        return reply

    def lookup(self, parent: int, name: bytes) -> Entry:
        return Entry.parse(self.ask(Op.LOOKUP, parent, names(name), room=[ENTRY_ROOM]))

    def forget(self, nodeid: int, count: int = 1) -> None:
        self.send(Op.FORGET, nodeid, FORGET_IN.pack(count), room=None, queue=self.FORGET_QUEUE)

    def getattr(self, nodeid: int) -> Attr:
        data = self.ask(Op.GETATTR, nodeid, GETATTR_IN.pack(0, 0, 0), room=[ATTR_ROOM])
        return Attr(*ATTR.unpack_from(data, ATTR_OUT.size))

    def open(self, nodeid: int, flags: int, op: int = Op.OPEN) -> int:
        data = self.ask(op, nodeid, OPEN_IN.pack(flags, 0), room=[OPEN_ROOM])
        return int(OPEN_OUT.unpack(data)[0])

    def opendir(self, nodeid: int, flags: int = os.O_RDONLY) -> int:
        return self.open(nodeid, flags, Op.OPENDIR)

    def release(self, nodeid: int, fh: int, op: int = Op.RELEASE) -> None:
        self.ask(op, nodeid, RELEASE_IN.pack(fh, 0, 0, 0))

    def read(self, nodeid: int, fh: int, offset: int, size: int) -> bytes:
        body = read_in(fh=fh, offset=offset, size=size)
        return self.ask(Op.READ, nodeid, body, room=[size], exact=False)

    def write(self, nodeid: int, fh: int, offset: int, data: bytes, flags: int = 0) -> None:
        body = write_in(fh=fh, offset=offset, size=len(data), flags=flags)
        reply = self.ask(Op.WRITE, nodeid, body, data, room=[WRITE_OUT.size])
        assert WRITE_OUT.unpack(reply)[0] == len(data)

    def readdir(
        self, nodeid: int, fh: int, size: int, *, plus: bool = False, per_reply: int | None = None
    ) -> list[Dirent]:
        """All entries of a directory. `per_reply`: the driver uses at most this number of entries
        of a reply, and asks for the other entries again."""
        found: list[Dirent] = []
        op = Op.READDIRPLUS if plus else Op.READDIR
        while True:
            offset = found[-1].off if found else 0
            body = read_in(fh=fh, offset=offset, size=size)
            part = parse_dirents(self.ask(op, nodeid, body, room=[size], exact=False), plus)
            if not part:
                return found
            found += part[:per_reply]

    def statfs(self, nodeid: int = ROOT) -> tuple[int, ...]:
        """The members blocks, bfree, bavail, files, ffree, bsize, namelen and frsize of struct
        fuse_kstatfs."""
        data = self.ask(Op.STATFS, nodeid, room=[STATFS_OUT.size])
        return tuple(STATFS_OUT.unpack(data)[:8])

    def path(self, name: bytes) -> Path:
        """The path of a file of the share on the host."""
        return self.share / os.fsdecode(name)
