# SPDX-License-Identifier: Apache-2.0
"""The common part of all versions of Linux. The arguments have one descriptor, beside that of the
header. Data is in pages of its own. FORGET goes through the hiprio queue as one piece.
"""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from tests.hostile.fuse import (
    COPY_IN,
    CREATE_IN,
    FALLOCATE_IN,
    FATTR_FH,
    FATTR_SIZE,
    FLUSH_IN,
    FSYNC_IN,
    GETATTR_IN,
    GETXATTR_IN,
    LINK_IN,
    LSEEK_IN,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_OUT,
    OUT_HEADER,
    RENAME2_IN,
    ROOT,
    SETATTR_IN,
    U64,
    WRITE_OUT,
    Entry,
    InitReply,
    Op,
    names,
)

from .driver import ATTR_ROOM, ENTRY_ROOM, OPEN_ROOM, READDIRPLUS_AUTO, Driver

PAGE = 4096
GETATTR_FH = 1
RENAME_EXCHANGE = 2
WRITE_FLAGS = os.O_RDWR | 0o100000  # f_flags of an open file: O_LARGEFILE is always there

# The flags that INIT offers, by version. Version 5.4 offers all flags up to EXPLICIT_INVAL_DATA,
# except for bit 2, FILE_OPS.
SUBMOUNTS = 1 << 27
HANDLE_KILLPRIV_V2, SETXATTR_EXT, INIT_EXT, SECURITY_CTX = 1 << 28, 1 << 29, 1 << 30, 1 << 32
CREATE_SUPP_GROUP, HAS_EXPIRE_ONLY, DIRECT_IO_ALLOW_MMAP = 1 << 34, 1 << 35, 1 << 36
PASSTHROUGH, NO_EXPORT_SUPPORT, ALLOW_IDMAP = 1 << 37, 1 << 38, 1 << 40
REQUEST_TIMEOUT = 1 << 42
OFFERED_5_4 = ((1 << 26) - 1) & ~(1 << 2)
OFFERED_5_10 = OFFERED_5_4 | SUBMOUNTS
OFFERED_6_1 = OFFERED_5_10 | HANDLE_KILLPRIV_V2 | SETXATTR_EXT | INIT_EXT | SECURITY_CTX
OFFERED_6_6 = OFFERED_6_1 | CREATE_SUPP_GROUP | HAS_EXPIRE_ONLY | DIRECT_IO_ALLOW_MMAP
OFFERED_6_12 = OFFERED_6_6 | PASSTHROUGH | NO_EXPORT_SUPPORT | ALLOW_IDMAP
OFFERED_7_2 = OFFERED_6_12 | REQUEST_TIMEOUT


class Linux(Driver):
    """A version of Linux sets what it offers (`MINOR`, `FLAGS`); LATER has its newer requests."""

    SOURCE = "Linux, fs/fuse"
    FORGET_QUEUE = 0

    agreed: InitReply

    def lay_out(self, header: bytes, parts: Sequence[bytes]) -> list[bytes]:
        if not parts:
            return [header]
        opcode = int.from_bytes(header[4:8], "little")
        if opcode == Op.FORGET:
            return [header + parts[0]]
        if opcode == Op.WRITE:
            return [header, parts[0], *_pages(parts[1])]
        return [header, b"".join(parts)]

    def lay_out_reply(self, room: Sequence[int]) -> list[int]:
        if len(room) == 1 and room[0] % PAGE == 0:
            return [OUT_HEADER.size, *[PAGE] * (room[0] // PAGE)]
        return [OUT_HEADER.size, sum(room)] if room else [OUT_HEADER.size]

    def ids(self) -> tuple[int, int, int]:
        """Since 6.12, if ALLOW_IDMAP was agreed on, only a request that creates a file has ids."""
        if self.has(ALLOW_IDMAP):
            return 0xFFFFFFFF, 0xFFFFFFFF, 42
        return 0, 0, 42

    def has(self, flag: int) -> bool:
        agreed = getattr(self, "agreed", None)
        return agreed is not None and bool((agreed.flags | agreed.flags2 << 32) & flag)

    def use(self) -> None:
        self.agreed = self.init()
        self.getattr(ROOT)
        self.statfs()
        body = MKDIR_IN.pack(0o755, 0o22) + names(b"home")
        folder = Entry.parse(self.ask(Op.MKDIR, ROOT, body, room=[ENTRY_ROOM], ids=(0, 0)))
        self._data(folder)
        self._attributes(folder)
        self._names(folder)
        self._list(folder)
        for since, request in LATER.items():
            if since <= self.MINOR:
                for send in request:
                    send(self, folder)
        for path in sorted(self.path(b"home").iterdir()):
            name = os.fsencode(path.name)
            self.forget(self.lookup(folder.nodeid, name).nodeid)
            self.ask(Op.UNLINK, folder.nodeid, names(name))
        self.ask(Op.RMDIR, ROOT, names(b"home"))
        self.forget(folder.nodeid)
        assert not any(self.share.iterdir())
        self.ask(Op.DESTROY, ROOT)

    def created(self, parent: int, name: bytes, flags: int = os.O_RDWR) -> tuple[Entry, int]:
        body = CREATE_IN.pack(flags | os.O_CREAT | 0o100000, 0o100644, 0o22, 0) + names(name)
        data = self.ask(Op.CREATE, parent, body, room=[ENTRY_ROOM, OPEN_ROOM], ids=(0, 0))
        return Entry.parse(data), int(OPEN_OUT.unpack_from(data, ENTRY_ROOM)[0])

    def _data(self, folder: Entry) -> None:
        entry, fh = self.created(folder.nodeid, b"f")
        text = os.urandom(5 * PAGE + 17)
        self.write(entry.nodeid, fh, 0, text, WRITE_FLAGS)
        got = self.read(entry.nodeid, fh, 0, 8 * PAGE)
        assert got == text
        # The flags of an open file may change, so each WRITE has the flags of its time.
        self.write(entry.nodeid, fh, 0, b"end", WRITE_FLAGS | os.O_APPEND)
        self.write(entry.nodeid, fh, 0, b"begin", WRITE_FLAGS)
        assert self.path(b"home/f").read_bytes() == b"begin" + text[5:] + b"end"
        allocate = FALLOCATE_IN.pack(fh, 0, 16 * PAGE, 0, 0)
        self.ask(Op.FALLOCATE, entry.nodeid, allocate)
        seek = LSEEK_IN.pack(fh, 0, os.SEEK_DATA, 0)
        error, data = self.send(Op.LSEEK, entry.nodeid, seek, room=[U64.size])
        # After ENOSYS Linux takes the whole file for data.
        assert error == errno.ENOSYS or U64.unpack(data)[0] == 0
        copy = COPY_IN.pack(fh, 0, entry.nodeid, fh, 8 * PAGE, PAGE, 0)
        done = self.ask(Op.COPY_FILE_RANGE, entry.nodeid, copy, room=[WRITE_OUT.size])
        assert WRITE_OUT.unpack(done)[0] == PAGE
        self.ask(Op.FSYNC, entry.nodeid, FSYNC_IN.pack(fh, 1, 0))
        self.ask(Op.FLUSH, entry.nodeid, FLUSH_IN.pack(fh, 0, 0, 0))
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)
        # Each WRITE to a file that was opened to append has O_APPEND; its offset has no meaning.
        entry = self.lookup(folder.nodeid, b"f")
        fh = self.open(entry.nodeid, os.O_WRONLY | os.O_APPEND | 0o100000)
        self.write(entry.nodeid, fh, 0, b"more", os.O_WRONLY | os.O_APPEND | 0o100000)
        # Then fcntl(F_SETFL) takes O_APPEND away.
        self.write(entry.nodeid, fh, 2, b"XX", os.O_WRONLY | 0o100000)
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)
        assert self.path(b"home/f").read_bytes()[-4:] == b"more"
        assert self.path(b"home/f").read_bytes()[:5] == b"beXXn"

    def _attributes(self, folder: Entry) -> None:
        """Attributes of a file that is open and has no name any more."""
        entry, fh = self.created(folder.nodeid, b"gone")
        self.ask(Op.UNLINK, folder.nodeid, names(b"gone"))
        body = SETATTR_IN.pack(FATTR_SIZE | FATTR_FH, 0, fh, 9, *[0] * 12)
        self.ask(Op.SETATTR, entry.nodeid, body, room=[ATTR_ROOM])
        self.ask(Op.GETATTR, entry.nodeid, GETATTR_IN.pack(GETATTR_FH, 0, fh), room=[ATTR_ROOM])
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)

    def _names(self, folder: Entry) -> None:
        body = names(b"link", b"f")
        made = self.ask(Op.SYMLINK, folder.nodeid, body, room=[ENTRY_ROOM], ids=(0, 0))
        link = Entry.parse(made)
        assert self.ask(Op.READLINK, link.nodeid, room=[PAGE], exact=False) == b"f"
        self.forget(link.nodeid)
        entry = self.lookup(folder.nodeid, b"f")
        body = LINK_IN.pack(entry.nodeid) + names(b"g")
        self.ask(Op.LINK, folder.nodeid, body, room=[ENTRY_ROOM])
        self.forget(entry.nodeid, 2)
        body = MKNOD_IN.pack(0o010644, 0, 0o22, 0) + names(b"fifo")
        fifo = Entry.parse(self.ask(Op.MKNOD, folder.nodeid, body, room=[ENTRY_ROOM], ids=(0, 0)))
        self.forget(fifo.nodeid)
        body = RENAME2_IN.pack(folder.nodeid, RENAME_EXCHANGE, 0) + names(b"link", b"fifo")
        self.ask(Op.RENAME2, folder.nodeid, body)
        self.refused(errno.ENOENT, Op.LOOKUP, folder.nodeid, names(b"nothing"))
        error, _ = self.send(
            Op.GETXATTR, entry.nodeid, GETXATTR_IN.pack(0, 0) + names(b"user.a"), room=[8]
        )
        assert error in (errno.ENODATA, errno.ENOSYS, errno.EOPNOTSUPP, errno.ESTALE)

    def _list(self, folder: Entry) -> None:
        fh = self.opendir(folder.nodeid, os.O_RDONLY | os.O_DIRECTORY | 0o100000)
        everything = {b".", b"..", b"f", b"g", b"link", b"fifo"}
        assert {e.name for e in self.readdir(folder.nodeid, fh, PAGE)} == everything
        if self.has(READDIRPLUS_AUTO):
            found = self.readdir(folder.nodeid, fh, 8 * PAGE, plus=True)
            assert {e.name for e in found} == everything
            for entry in found:
                if entry.name not in (b".", b".."):
                    assert entry.entry is not None
                    self.forget(entry.entry.nodeid)
        self.release(folder.nodeid, fh, Op.RELEASEDIR)

    # Requests that 5.4 does not have.

    def syncfs(self, _folder: Entry) -> None:
        """Since 5.14."""
        self.ask(Op.SYNCFS, ROOT, bytes(8))

    def tmpfile(self, folder: Entry) -> None:
        """Since 6.1."""
        body = CREATE_IN.pack(os.O_RDWR | os.O_TMPFILE, 0o100600, 0o22, 0) + names(b"")
        error, data = self.send(
            Op.TMPFILE, folder.nodeid, body, room=[ENTRY_ROOM, OPEN_ROOM], ids=(0, 0)
        )
        if error == errno.EOPNOTSUPP:  # the host's file system has no O_TMPFILE
            return
        assert not error
        entry, fh = Entry.parse(data), int(OPEN_OUT.unpack_from(data, ENTRY_ROOM)[0])
        self.write(entry.nodeid, fh, 0, b"x", WRITE_FLAGS)
        body = LINK_IN.pack(entry.nodeid) + names(b"named")
        self.ask(Op.LINK, folder.nodeid, body, room=[ENTRY_ROOM])
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid, 2)

    def create_with_groups(self, folder: Entry) -> None:
        """Since 6.3, if agreed on: an extension with the supplementary group that is needed to
        create the file."""
        if not self.has(CREATE_SUPP_GROUP):
            return
        body = MKDIR_IN.pack(0o755, 0o22) + names(b"sub")
        size = len(body) + (-len(body)) % 8
        groups = b"".join(word.to_bytes(4, "little") for word in (16, 32, 1, 77))
        self._groups = len(groups) // 8
        try:
            data = self.ask(
                Op.MKDIR, folder.nodeid, body.ljust(size, b"\0") + groups, room=[ENTRY_ROOM],
                ids=(0, 0),
            )  # fmt: skip
        finally:
            self._groups = 0
        self.ask(Op.RMDIR, folder.nodeid, names(b"sub"))
        self.forget(Entry.parse(data).nodeid)

    _groups = 0  # length of the extension of the request that is sent, in units of 8 bytes

    def last_words(self) -> tuple[int, int]:
        return self._groups, 0

    def statx(self, folder: Entry) -> None:
        """Linux sends STATX since version 6.6."""
        body = (
            (0).to_bytes(16, "little") + (0).to_bytes(4, "little") + (0xFFF).to_bytes(4, "little")
        )
        self.ask(Op.STATX, folder.nodeid, body, room=[288])

    def copy_file_range_64(self, folder: Entry) -> None:
        """Since 6.18."""
        entry = self.lookup(folder.nodeid, b"f")
        fh = self.open(entry.nodeid, os.O_RDWR)
        copy = COPY_IN.pack(fh, 0, entry.nodeid, fh, 16 * PAGE, PAGE, 0)
        done = self.ask(Op.COPY_FILE_RANGE_64, entry.nodeid, copy, room=[U64.size])
        assert U64.unpack(done)[0] == PAGE
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)

    def many_descriptors(self, folder: Entry) -> None:
        """Since 7.2 READDIR reads into pages. Since 7.3 a READ is as large as both sides agreed."""
        fh = self.opendir(folder.nodeid)
        found = self.readdir(folder.nodeid, fh, 32 * PAGE)
        assert {b".", b"..", b"f"} <= {e.name for e in found}
        self.release(folder.nodeid, fh, Op.RELEASEDIR)
        entry = self.lookup(folder.nodeid, b"f")
        fh = self.open(entry.nodeid, os.O_RDONLY)
        size = entry.attr.size
        assert len(self.read(entry.nodeid, fh, 0, 64 * PAGE)) == size
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)


# The requests that not every version sends, by the minor version of FUSE that introduced them. The
# versions here with FUSE 7.45 and newer also read as described at many_descriptors().
LATER: Final[dict[int, tuple[Callable[[Linux, Entry], None], ...]]] = {
    34: (Linux.syncfs,),
    37: (Linux.tmpfile,),
    38: (Linux.create_with_groups,),
    39: (Linux.statx,),
    45: (Linux.copy_file_range_64, Linux.many_descriptors),
}


def _pages(data: bytes) -> list[bytes]:
    return [data[at : at + PAGE] for at in range(0, len(data), PAGE)]
