# SPDX-License-Identifier: Apache-2.0
"""Zephyr: paths are looked up component by component, LSEEK sets the position of a file, UNLINK has
the whole path, and the length in the header of a FORGET does not include its argument.
"""

import errno
import os
from collections.abc import Sequence

from tests.hostile.fuse import (
    CREATE_IN,
    FATTR_SIZE,
    FORGET_IN,
    FSYNC_IN,
    IN_HEADER,
    LSEEK_IN,
    MKDIR_IN,
    OPEN_OUT,
    OUT_HEADER,
    RENAME_IN,
    ROOT,
    SETATTR_IN,
    U64,
    Entry,
    Op,
    names,
)

from .driver import ATTR_ROOM, ENTRY_ROOM, INIT_LONG, OPEN_ROOM, Driver

DIRENT_SIZE, NAME_ROOM = 24, 256
MODE = 0o777  # of files and of folders
UNSET = 0xA5A5A5A5A5A5A5A5  # content of the stack


class Zephyr(Driver):
    SOURCE = "zephyrproject-rtos/zephyr, subsys/fs/virtiofs"
    INIT_NODEID = ROOT
    INIT_BYTES = INIT_LONG
    QUEUE = 2  # Zephyr's default: it expects a device with a notification queue
    FORGET_QUEUE = 2

    def lay_out(self, header: bytes, parts: Sequence[bytes]) -> list[bytes]:
        """Header and struct are one piece. A name is another piece, and the last byte of the name
        is a piece of its own."""
        if not parts or (len(parts) == 1 and not parts[0].endswith(b"\0")):
            return [header + b"".join(parts)]
        if len(parts) == 1:
            return [header, *([parts[0][:-1]] if parts[0][:-1] else []), parts[0][-1:]]
        return [header + parts[0], *parts[1:]]

    def lay_out_reply(self, room: Sequence[int]) -> list[int]:
        """The reply is one piece, except for data, which has a buffer of its own."""
        return [OUT_HEADER.size, *room] if len(room) == 2 else [OUT_HEADER.size + sum(room)]

    def forget(self, nodeid: int, count: int = 1) -> None:
        if nodeid != ROOT:
            self.send(
                Op.FORGET, nodeid, FORGET_IN.pack(count), room=None, counted=0, queue=self.QUEUE
            )

    def use(self) -> None:
        reply = self.init()
        self._mkdir()
        self._open_and_write(reply.max_write)
        self._append(reply.max_write)
        self._truncate_and_sync()
        self._list()
        self._rename()
        self._unlink()
        self.statfs()
        self.ask(Op.DESTROY, ROOT)

    def _mkdir(self) -> None:
        self.refused(errno.ENOENT, Op.LOOKUP, ROOT, names(b"data"))
        data = self.ask(Op.MKDIR, ROOT, MKDIR_IN.pack(MODE, 0), names(b"data"), room=[ENTRY_ROOM])
        self.forget(Entry.parse(data).nodeid)

    def _seek(self, nodeid: int, fh: int, offset: int, whence: int) -> int:
        body = LSEEK_IN.pack(fh, offset, whence, 0)
        return int(U64.unpack(self.ask(Op.LSEEK, nodeid, body, room=[U64.size]))[0])

    def _open_and_write(self, max_write: int) -> None:
        folder = self.lookup(ROOT, b"data")
        self.refused(errno.ENOENT, Op.LOOKUP, folder.nodeid, names(b"log"))
        body = CREATE_IN.pack(os.O_RDWR | os.O_CREAT, MODE, 0, 0)
        data = self.ask(Op.CREATE, folder.nodeid, body, names(b"log"), room=[ENTRY_ROOM, OPEN_ROOM])
        entry, fh = Entry.parse(data), int(OPEN_OUT.unpack_from(data, ENTRY_ROOM)[0])
        self.forget(folder.nodeid)
        self.write(entry.nodeid, fh, 0, b"0123456789")
        assert self._seek(entry.nodeid, fh, 4, os.SEEK_SET) == 4
        assert self.read(entry.nodeid, fh, 4, 3) == b"456"
        # The guest turns SEEK_CUR into SEEK_SET, also beyond the end of the file.
        assert self._seek(entry.nodeid, fh, 100, os.SEEK_SET) == 100
        assert self._seek(entry.nodeid, fh, 0, os.SEEK_END) == 10
        assert max_write >= 4096
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)
        assert self.path(b"data/log").read_bytes() == b"0123456789"

    def _append(self, max_write: int) -> None:
        """Each WRITE goes to the end of the file, whatever its offset is."""
        folder = self.lookup(ROOT, b"data")
        entry = self.lookup(folder.nodeid, b"log")
        fh = self.open(entry.nodeid, os.O_RDWR | os.O_APPEND)
        text = os.urandom(max_write + 5)
        for done, piece in ((0, text[:max_write]), (max_write, text[max_write:])):
            position = self._seek(entry.nodeid, fh, 0, os.SEEK_END)
            self.write(entry.nodeid, fh, position + done, piece)
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)
        self.forget(folder.nodeid)
        assert self.path(b"data/log").read_bytes() == b"0123456789" + text

    def _truncate_and_sync(self) -> None:
        folder = self.lookup(ROOT, b"data")
        entry = self.lookup(folder.nodeid, b"log")
        fh = self.open(entry.nodeid, os.O_RDWR)
        word = UNSET & 0xFFFFFFFF
        body = SETATTR_IN.pack(FATTR_SIZE, word, fh, 3, UNSET, UNSET, UNSET, UNSET, *[word] * 8)
        self.ask(Op.SETATTR, entry.nodeid, body, room=[ATTR_ROOM])
        self.ask(Op.FSYNC, entry.nodeid, FSYNC_IN.pack(fh, 0, 0))
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)
        self.forget(folder.nodeid)
        assert self.path(b"data/log").read_bytes() == b"012"

    def _list(self) -> None:
        """Zephyr calls the root ".". It uses one entry of each reply, and looks the entry up if it
        is a file."""
        self.refused(errno.ENOENT, Op.LOOKUP, ROOT, names(b""))
        root = self.lookup(ROOT, b".")
        assert root.nodeid == ROOT
        folder = self.lookup(root.nodeid, b"data")
        fh = self.opendir(folder.nodeid)
        size = DIRENT_SIZE + NAME_ROOM
        found = self.readdir(folder.nodeid, fh, size, per_reply=1)
        assert {e.name for e in found} == {b".", b"..", b"log"}
        entry = self.lookup(folder.nodeid, b"log")
        assert entry.attr.size == 3
        self.forget(entry.nodeid)
        self.release(folder.nodeid, fh, Op.RELEASEDIR)
        self.forget(folder.nodeid)

    def _rename(self) -> None:
        folder = self.lookup(ROOT, b"data")
        old = self.lookup(folder.nodeid, b"log")
        self.refused(errno.ENOENT, Op.LOOKUP, ROOT, names(b"log"))
        body = RENAME_IN.pack(ROOT)
        self.ask(Op.RENAME, folder.nodeid, body, names(b"log"), names(b"log"))
        self.forget(old.nodeid)
        self.forget(UNSET)  # the nodeid of the new name, which LOOKUP did not find
        self.forget(folder.nodeid)
        assert self.path(b"log").exists()

    def _unlink(self) -> None:
        self.forget(self.lookup(ROOT, b"log").nodeid)
        self.ask(Op.UNLINK, ROOT, names(b"log"))
        self.path(b"data/x").touch()
        # For a file in a folder the name is a path. The daemon refuses it and removes no file.
        self.refused(errno.EINVAL, Op.UNLINK, ROOT, names(b"data/x"), room=8)
        self.path(b"data/x").unlink()
        self.forget(self.lookup(ROOT, b"data").nodeid)
        self.ask(Op.RMDIR, ROOT, names(b"data"))
        assert IN_HEADER.size == 40
        assert not any(self.share.iterdir())
