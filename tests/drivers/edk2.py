# SPDX-License-Identifier: Apache-2.0
"""UEFI firmware: edk2's VirtioFsDxe. Each struct has its own descriptor, also in a reply. The
driver uses one queue, also for FORGET.
"""

import errno
import os

from tests.hostile.fuse import (
    ATTR,
    CREATE_IN,
    FATTR_MODE,
    FATTR_SIZE,
    FLUSH_IN,
    FSYNC_IN,
    MKDIR_IN,
    OPEN_OUT,
    RENAME2_IN,
    ROOT,
    SETATTR_IN,
    Entry,
    Op,
    names,
)

from .driver import ATTR_ROOM, DO_READDIRPLUS, ENTRY_ROOM, OPEN_ROOM, Driver

NODE_ROOM = ENTRY_ROOM - ATTR.size
FATTR_ATIME, FATTR_MTIME = 1 << 4, 1 << 5
RENAME_NOREPLACE = 1
ENTRY_BYTES = ENTRY_ROOM + 24  # an entry of READDIRPLUS, without its name
S_IFMT, S_IFDIR = 0o170000, 0o040000


class Edk2(Driver):
    SOURCE = "tianocore/edk2, OvmfPkg/VirtioFsDxe"
    FLAGS = DO_READDIRPLUS

    def use(self) -> None:
        reply = self.init()
        assert reply.flags & DO_READDIRPLUS, "the firmware gives up without READDIRPLUS"
        self._list_root(set())
        folder = self._mkdir(b"EFI")
        self._write(folder)
        self._list_root({b"EFI"})
        self._touch_and_move(folder)
        self._remove(folder)
        self.ask(Op.DESTROY, ROOT)

    def _node(self, op: int, parent: int, *parts: bytes) -> Entry:
        return Entry.parse(self.ask(op, parent, *parts, room=[NODE_ROOM, ATTR.size]))

    def lookup(self, parent: int, name: bytes) -> Entry:
        return self._node(Op.LOOKUP, parent, names(name))

    def _list_root(self, expected: set[bytes]) -> None:
        """The buffer has room for one entry with a name of the length that STATFS returns."""
        fh = self.opendir(ROOT)
        namelen = self.statfs()[6]
        size = ENTRY_BYTES + (namelen + 7) // 8 * 8
        found = self.readdir(ROOT, fh, size, plus=True)
        for entry in found:
            assert len(entry.name) <= namelen
            assert entry.entry is not None
            assert entry.entry.attr.mode & S_IFMT, f"{entry.name!r} has a type that is not known"
            if entry.name not in (b".", b".."):
                self.forget(entry.entry.nodeid)
        assert {e.name for e in found} == expected | {b".", b".."}
        self.release(ROOT, fh, Op.RELEASEDIR)

    def _mkdir(self, name: bytes) -> Entry:
        self.refused(errno.ENOENT, Op.LOOKUP, ROOT, names(name))
        folder = self._node(Op.MKDIR, ROOT, MKDIR_IN.pack(0o777, 0), names(name))
        self.release(folder.nodeid, self.opendir(folder.nodeid), Op.RELEASEDIR)
        return folder

    def _write(self, folder: Entry) -> None:
        data = self.ask(
            Op.CREATE,
            folder.nodeid,
            CREATE_IN.pack(os.O_RDWR, 0o666, 0, 0),
            names(b"BOOTX64.EFI"),
            room=[NODE_ROOM, ATTR.size, OPEN_ROOM],
        )
        entry, fh = Entry.parse(data), int(OPEN_OUT.unpack_from(data, ENTRY_ROOM)[0])
        text = os.urandom(50_000)
        self.write(entry.nodeid, fh, 0, text[:40_000])
        self.write(entry.nodeid, fh, 40_000, text[40_000:])
        assert self.getattr(entry.nodeid).size == len(text)
        # The firmware reads the file in one request, into a buffer that may be far larger.
        assert self.read(entry.nodeid, fh, 0, 1 << 20) == text
        self.ask(Op.FLUSH, entry.nodeid, FLUSH_IN.pack(fh, 0, 0, 0))
        self.ask(Op.FSYNC, entry.nodeid, FSYNC_IN.pack(fh, 0, 0))
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)
        assert self.path(b"EFI/BOOTX64.EFI").read_bytes() == text

    def _touch_and_move(self, folder: Entry) -> None:
        entry = self.lookup(folder.nodeid, b"BOOTX64.EFI")
        fh = self.open(entry.nodeid, os.O_RDWR)
        valid = FATTR_SIZE | FATTR_ATIME | FATTR_MTIME | FATTR_MODE
        body = SETATTR_IN.pack(valid, 0, 0, 7, 0, 10**9, 10**9, 0, 0, 0, 0, 0o666, 0, 0, 0, 0)
        self.ask(Op.SETATTR, entry.nodeid, body, room=[ATTR_ROOM - ATTR.size, ATTR.size])
        self.ask(
            Op.RENAME2,
            folder.nodeid,
            RENAME2_IN.pack(ROOT, RENAME_NOREPLACE, 0),
            names(b"BOOTX64.EFI"),
            names(b"startup.nsh"),
        )
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)
        found = self.path(b"startup.nsh").stat()
        assert (found.st_size, found.st_mtime) == (7, 10**9)

    def _remove(self, folder: Entry) -> None:
        self.ask(Op.UNLINK, ROOT, names(b"startup.nsh"))
        self.ask(Op.RMDIR, ROOT, names(b"EFI"))
        self.forget(folder.nodeid)
        assert not any(self.share.iterdir())
