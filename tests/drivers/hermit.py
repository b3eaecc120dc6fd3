# SPDX-License-Identifier: Apache-2.0
"""Hermit: every name is a path from the root, and `unique` is always 1. A WRITE to a file that was
opened to append goes to the end of the file, whatever its offset is. RELEASE also closes
directories.

The daemon refuses a name with more than one component (docs/guests.md). The names of files in the
share's root have one component, so a Hermit unikernel can work with these files.
"""

import errno
import os
from collections.abc import Sequence

from tests.hostile.fuse import (
    CREATE_IN,
    FATTR_SIZE,
    LSEEK_IN,
    MKDIR_IN,
    OPEN_OUT,
    OUT_HEADER,
    ROOT,
    SETATTR_IN,
    U64,
    Entry,
    Op,
    names,
)

from .driver import ATTR_ROOM, ENTRY_ROOM, INIT_LONG, OPEN_ROOM, Driver

BUFFER = 64 << 10  # bytes of one READ, WRITE, READDIR or READLINK
O_DIRECTORY = 0x10000  # Hermit's source says: "might not be necessary"
POLL_IN_BYTES, POLL_ROOM = 24, 8


class Hermit(Driver):
    SOURCE = "hermit-os/kernel, src/fs/virtio_fs.rs"
    INIT_NODEID = ROOT
    INIT_BYTES = INIT_LONG

    def unique(self) -> int:
        return 1

    def ids(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def lay_out(self, header: bytes, parts: Sequence[bytes]) -> list[bytes]:
        """One piece has the header and the struct, another piece the name or the data."""
        if len(parts) < 2:
            return [header, *parts]
        return [header + parts[0], *parts[1:]]

    def lay_out_reply(self, room: Sequence[int]) -> list[int]:
        return [OUT_HEADER.size + sum(room)]

    def use(self) -> None:
        self.init()
        for path in (b"/", b"/data", b"/data/a"):
            self.refused(errno.EINVAL, Op.LOOKUP, ROOT, names(path))
        self._append()
        self._seek_and_truncate()
        self._list()
        self.ask(Op.UNLINK, ROOT, names(b"log"))
        self.ask(Op.MKDIR, ROOT, MKDIR_IN.pack(0o777, 0), names(b"d"), room=[ENTRY_ROOM])
        self.ask(Op.RMDIR, ROOT, names(b"d"))
        assert not any(self.share.iterdir())

    def _append(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        body = CREATE_IN.pack(flags, 0o644, 0, 0)
        data = self.ask(Op.CREATE, ROOT, body, names(b"log"), room=[ENTRY_ROOM, OPEN_ROOM])
        entry, fh = Entry.parse(data), int(OPEN_OUT.unpack_from(data, ENTRY_ROOM)[0])
        self.write(entry.nodeid, fh, 0, b"first\n")
        self.release(entry.nodeid, fh)
        # When Hermit opens the file again, its offset begins at 0.
        entry = self.lookup(ROOT, b"log")
        fh = self.open(entry.nodeid, os.O_WRONLY | os.O_APPEND)
        self.write(entry.nodeid, fh, 0, b"second\n")
        self.write(entry.nodeid, fh, 7, b"third\n")
        self.release(entry.nodeid, fh)
        assert self.path(b"log").read_bytes() == b"first\nsecond\nthird\n"

    def _seek_and_truncate(self) -> None:
        entry = self.lookup(ROOT, b"log")
        fh = self.open(entry.nodeid, os.O_RDWR)
        seek = LSEEK_IN.pack(fh, 0, os.SEEK_END, 0)
        assert U64.unpack(self.ask(Op.LSEEK, entry.nodeid, seek, room=[U64.size]))[0] == 19
        assert self.read(entry.nodeid, fh, 0, BUFFER) == b"first\nsecond\nthird\n"
        body = SETATTR_IN.pack(FATTR_SIZE, 0, fh, 5, *[0] * 12)
        self.ask(Op.SETATTR, entry.nodeid, body, room=[ATTR_ROOM])
        self.refused(errno.ENOSYS, Op.POLL, entry.nodeid, bytes(POLL_IN_BYTES), room=POLL_ROOM)
        self.release(entry.nodeid, fh)
        assert self.path(b"log").read_bytes() == b"first"

    def _list(self) -> None:
        fh = self.open(ROOT, O_DIRECTORY, Op.OPENDIR)
        found = {entry.name for entry in self.readdir(ROOT, fh, BUFFER)}
        assert found == {b".", b"..", b"log"}
        self.release(ROOT, fh)  # RELEASE: Hermit sends no RELEASEDIR
