# SPDX-License-Identifier: Apache-2.0
"""Windows: the service of virtio-win's viofs. Header and arguments are one buffer on the stack or
heap, and the service sets only the fields that it knows.
"""

import errno
import itertools
import os
from collections.abc import Sequence

from tests.hostile.fuse import (
    CREATE_IN,
    FALLOCATE_IN,
    FATTR_FH,
    FATTR_MODE,
    FATTR_SIZE,
    FLUSH_IN,
    GETATTR_IN,
    MKDIR_IN,
    OPEN_OUT,
    OUT_HEADER,
    RENAME2_IN,
    RENAME_IN,
    ROOT,
    SETATTR_IN,
    Entry,
    Op,
    names,
    read_in,
)

from .driver import (
    ATTR_ROOM,
    DO_READDIRPLUS,
    ENTRY_ROOM,
    MAX_PAGES,
    OPEN_ROOM,
    Driver,
)

GARBAGE = ((1, 0xBEEF), (0x1234, 0), (2, 1), (0xFFFF, 0xFFFF), (0, 0x55AA))
READLINK_ROOM = 260  # MAX_PATH
NO_HANDLE = (1 << 64) - 1
O_DIRECTORY = 0o200000
FATTR_ATIME, FATTR_MTIME = 1 << 4, 1 << 5
FALLOC_FL_KEEP_SIZE, RENAME_NOREPLACE = 1, 1
LISTING = 0x2000  # bytes: twice WinFsp's buffer
S_IFMT, S_IFDIR, S_IFLNK = 0o170000, 0o040000, 0o120000


class Windows(Driver):
    SOURCE = "virtio-win/kvm-guest-drivers-windows, viofs/svc/virtiofs.cpp"
    FLAGS = DO_READDIRPLUS | MAX_PAGES
    INIT_NODEID = ROOT

    _left = itertools.cycle(GARBAGE)

    def last_words(self) -> tuple[int, int]:
        return next(self._left)

    def lay_out(self, header: bytes, parts: Sequence[bytes]) -> list[bytes]:
        return [header + b"".join(parts)]

    def lay_out_reply(self, room: Sequence[int]) -> list[int]:
        return [OUT_HEADER.size + sum(room)]

    def forget(self, nodeid: int, count: int = 1) -> None:
        """Send nothing: the kernel driver refuses requests without a reply, so the device never
        gets a FORGET."""

    def use(self) -> None:
        self.init()
        blocks, _, _, _, _, block, _, fragment = self.statfs()
        host = os.statvfs(self.share)
        assert block * blocks == host.f_frsize * host.f_blocks, "the size of the volume"
        assert block == fragment
        root = self.lookup(ROOT, b".")
        assert root.attr.mode & S_IFMT == S_IFDIR
        folder = self._create_folder(root)
        self._create_file(folder)
        self._set_attributes(folder)
        self._links(folder)
        self._list(folder)
        self._rename(folder)
        self._delete(folder)
        self.ask(Op.DESTROY, ROOT)

    def _create_folder(self, root: Entry) -> Entry:
        self.refused(errno.ENOENT, Op.LOOKUP, ROOT, names(b"New folder"))
        owner = (root.attr.uid, root.attr.gid)
        body = MKDIR_IN.pack(0o775, 0) + names(b"New folder")
        folder = Entry.parse(self.ask(Op.MKDIR, ROOT, body, room=[ENTRY_ROOM], ids=owner))
        fh = self.opendir(folder.nodeid, os.O_RDONLY | O_DIRECTORY)
        self.release(folder.nodeid, fh, Op.RELEASEDIR)
        assert self.lookup(ROOT, b"New folder").nodeid == folder.nodeid
        return folder

    def _create_file(self, folder: Entry) -> None:
        body = CREATE_IN.pack(os.O_RDWR | os.O_EXCL, 0o664, 0, 0) + names(b"a.txt")
        data = self.ask(Op.CREATE, folder.nodeid, body, room=[ENTRY_ROOM, OPEN_ROOM])
        entry, fh = Entry.parse(data), int(OPEN_OUT.unpack_from(data, ENTRY_ROOM)[0])
        allocate = FALLOCATE_IN.pack(fh, 0, 65536, FALLOC_FL_KEEP_SIZE, 0)
        self.ask(Op.FALLOCATE, entry.nodeid, allocate)
        text = os.urandom(100_000)
        for offset in range(0, len(text), 65536):
            self.write(entry.nodeid, fh, offset, text[offset : offset + 65536])
            self.getattr(entry.nodeid)
        assert self.getattr(entry.nodeid).size == len(text)
        # The service sets the handle of a GETATTR, and then clears its flags.
        self.ask(Op.GETATTR, entry.nodeid, GETATTR_IN.pack(0, 0, fh), room=[ATTR_ROOM])
        self.ask(Op.FLUSH, entry.nodeid, FLUSH_IN.pack(fh, 0, 0, 0))
        assert self.read(entry.nodeid, fh, 4096, 65536) == text[4096 : 4096 + 65536]
        assert self.read(entry.nodeid, fh, len(text), 4096) == b""
        size = SETATTR_IN.pack(FATTR_SIZE, 0, 0, 5, *[0] * 12)
        self.ask(Op.SETATTR, entry.nodeid, size, room=[ATTR_ROOM])
        self.release(entry.nodeid, fh)
        assert self.path(b"New folder/a.txt").read_bytes() == text[:5]

    def _set_attributes(self, folder: Entry) -> None:
        """Set times and the read-only attribute through an open file."""
        entry = self.lookup(folder.nodeid, b"a.txt")
        fh = self.open(entry.nodeid, os.O_RDONLY)
        valid = FATTR_FH | FATTR_MODE | FATTR_ATIME | FATTR_MTIME
        body = SETATTR_IN.pack(
            valid, 0, fh, 0, 0, 1_000_000_000, 1_100_000_000, 0, 0, 0, 0, 0o444, 0, 0, 0, 0
        )
        self.ask(Op.SETATTR, entry.nodeid, body, room=[ATTR_ROOM])
        self.release(entry.nodeid, fh)
        found = self.path(b"New folder/a.txt").stat()
        assert (found.st_mode & 0o777, found.st_mtime) == (0o444, 1_100_000_000)

    def _links(self, folder: Entry) -> None:
        """The service does not open a link: its requests have NO_HANDLE or zero as fh."""
        link = Entry.parse(
            self.ask(Op.SYMLINK, folder.nodeid, names(b"link", b"a.txt"), room=[ENTRY_ROOM])
        )
        # The request is as long as the longest reply, and none of its bytes are set.
        noise = bytes(range(1, 256)) + b"\xee" * (READLINK_ROOM - 255)
        target = self.ask(Op.READLINK, link.nodeid, noise, room=[READLINK_ROOM], exact=False)
        assert target == b"a.txt"
        for fh in (0, NO_HANDLE):
            body = SETATTR_IN.pack(FATTR_FH | FATTR_MTIME, 0, fh, 0, 0, 0, 1_200_000_000, *[0] * 9)
            self.ask(Op.SETATTR, link.nodeid, body, room=[ATTR_ROOM])
        assert self.path(b"New folder/link").lstat().st_mtime == 1_200_000_000

    def _list(self, folder: Entry) -> None:
        fh = self.opendir(folder.nodeid, os.O_RDONLY | O_DIRECTORY)
        found = {e.name: e for e in self.readdir(folder.nodeid, fh, LISTING, plus=True)}
        assert set(found) == {b".", b"..", b"a.txt", b"link"}
        for name, kind in ((b".", S_IFDIR), (b"..", S_IFDIR), (b"link", S_IFLNK)):
            entry = found[name].entry
            assert entry is not None
            assert entry.attr.mode & S_IFMT == kind, f"{name!r} is shown as another type of file"
        # IsEmptyDirectory() counts the entries that READDIR returns: only "." and "..".
        body = read_in(fh=fh, size=0x1000 - OUT_HEADER.size)
        data = self.ask(
            Op.READDIR, folder.nodeid, body, room=[0x1000 - OUT_HEADER.size], exact=False
        )
        assert data
        self.release(folder.nodeid, fh, Op.RELEASEDIR)

    def _rename(self, folder: Entry) -> None:
        both = names(b"a.txt", b"b.txt")
        self.ask(
            Op.RENAME2, folder.nodeid, RENAME2_IN.pack(folder.nodeid, RENAME_NOREPLACE, 0) + both
        )
        self.refused(
            errno.EEXIST,
            Op.RENAME2,
            folder.nodeid,
            RENAME2_IN.pack(folder.nodeid, RENAME_NOREPLACE, 0) + names(b"b.txt", b"link"),
        )
        back = names(b"b.txt", b"a.txt")
        self.ask(Op.RENAME, folder.nodeid, RENAME_IN.pack(folder.nodeid) + back)

    def _delete(self, folder: Entry) -> None:
        """The service looks each name up before it removes the file, and never sends a FORGET."""
        for name in (b"a.txt", b"link"):
            self.lookup(folder.nodeid, name)
            self.ask(Op.UNLINK, folder.nodeid, names(name))
        self.ask(Op.RMDIR, ROOT, names(b"New folder"))
        assert not self.path(b"New folder").exists()
