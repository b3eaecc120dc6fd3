# SPDX-License-Identifier: Apache-2.0
"""Unikraft: the first descriptor has the header and the arguments, the second has the reply.
FORGET goes through the request queue, and only a part of the structs of READ and WRITE is set.
"""

import os
from collections.abc import Sequence

from tests.hostile.fuse import (
    CREATE_IN,
    FLUSH_IN,
    FSYNC_IN,
    LSEEK_IN,
    MKDIR_IN,
    OPEN_OUT,
    OUT_HEADER,
    ROOT,
    U64,
    WRITE_OUT,
    Entry,
    Op,
    names,
    read_in,
    write_in,
)

from .driver import (
    DO_READDIRPLUS,
    ENTRY_ROOM,
    INIT_LONG,
    MAX_PAGES,
    OPEN_ROOM,
    Driver,
)

UNSET = 0xDEADBEEF  # read_flags and flags of a READ: its struct is on the stack
LISTING = 8192


class Unikraft(Driver):
    SOURCE = "a port of virtio-fs to Unikraft: lib/ukfuse, plat/drivers/virtio/virtio_fs.c"
    FLAGS = DO_READDIRPLUS | MAX_PAGES
    INIT_NODEID = ROOT
    INIT_BYTES = INIT_LONG

    def ids(self) -> tuple[int, int, int]:
        return 1000, 1000, 1

    def lay_out(self, header: bytes, parts: Sequence[bytes]) -> list[bytes]:
        return [header + b"".join(parts)]

    def lay_out_reply(self, room: Sequence[int]) -> list[int]:
        return [OUT_HEADER.size + sum(room)]

    def use(self) -> None:
        self.init()
        body = MKDIR_IN.pack(0o777, 0) + names(b"app")
        folder = Entry.parse(self.ask(Op.MKDIR, ROOT, body, room=[ENTRY_ROOM], ids=(0, 0)))
        body = CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o644, 0, 0) + names(b"data")
        data = self.ask(Op.CREATE, folder.nodeid, body, room=[ENTRY_ROOM, OPEN_ROOM], ids=(0, 0))
        entry, fh = Entry.parse(data), int(OPEN_OUT.unpack_from(data, ENTRY_ROOM)[0])
        self._data(entry, fh)
        self.release(entry.nodeid, fh)
        fh = self.opendir(folder.nodeid)
        found = self.readdir(folder.nodeid, fh, LISTING, plus=True)
        assert {e.name for e in found} == {b".", b"..", b"data"}
        self.release(folder.nodeid, fh, Op.RELEASEDIR)
        self.ask(Op.UNLINK, folder.nodeid, names(b"data"))
        self.forget(entry.nodeid, 2)
        self.ask(Op.RMDIR, ROOT, names(b"app"))
        self.forget(folder.nodeid)
        assert not any(self.share.iterdir())

    def _data(self, entry: Entry, fh: int) -> None:
        text = os.urandom(9_000)
        body = write_in(fh=fh, size=len(text))
        reply = self.ask(Op.WRITE, entry.nodeid, body, text, room=[WRITE_OUT.size])
        assert WRITE_OUT.unpack(reply)[0] == len(text)
        body = read_in(
            fh=fh,
            offset=1000,
            size=4096,
            read_flags=UNSET & ~2,
            lock_owner=UNSET,
            flags=UNSET,
            pad=UNSET,
        )
        assert self.ask(Op.READ, entry.nodeid, body, room=[4096]) == text[1000:5096]
        seek = LSEEK_IN.pack(fh, 0, os.SEEK_END, 0)
        assert U64.unpack(self.ask(Op.LSEEK, entry.nodeid, seek, room=[U64.size]))[0] == len(text)
        self.ask(Op.FLUSH, entry.nodeid, FLUSH_IN.pack(fh, 0, 0, 0))
        self.ask(Op.FSYNC, entry.nodeid, FSYNC_IN.pack(fh, 1, 0))
