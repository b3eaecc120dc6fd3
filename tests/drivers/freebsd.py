# SPDX-License-Identifier: Apache-2.0
"""FreeBSD's vtfs. Header, arguments, reply header and reply always have one descriptor each. A
FORGET has a descriptor for a reply header, which is never written. The driver asks for permissions
by ACCESS.
"""

import errno
import os
from collections.abc import Sequence

from tests.hostile.fuse import (
    ACCESS_IN,
    CREATE_IN,
    FORGET_IN,
    GETXATTR_IN,
    LINK_IN,
    MKDIR_IN,
    OPEN_OUT,
    OUT_HEADER,
    RENAME_IN,
    ROOT,
    Entry,
    Op,
    names,
)

from .driver import ASYNC_READ, ENTRY_ROOM, OPEN_ROOM, POSIX_LOCKS, Driver

EXPORT_SUPPORT, BIG_WRITES = 1 << 4, 1 << 5
O_CREAT = 0x200  # FreeBSD's number, which is O_TRUNC in Linux
USER, GROUP = 1001, 1002


class FreeBsd(Driver):
    SOURCE = "FreeBSD's sys/fs/fuse, and the driver vtfs on top of sys/dev/virtio"
    MINOR = 35
    FLAGS = ASYNC_READ | POSIX_LOCKS | EXPORT_SUPPORT | BIG_WRITES
    FORGET_QUEUE = 0

    def lay_out(self, header: bytes, parts: Sequence[bytes]) -> list[bytes]:
        return [header, b"".join(parts)] if parts else [header]

    def lay_out_reply(self, room: Sequence[int]) -> list[int]:
        return [OUT_HEADER.size, sum(room)] if sum(room) else [OUT_HEADER.size]

    def forget(self, nodeid: int, count: int = 1) -> None:
        self.send(Op.FORGET, nodeid, FORGET_IN.pack(count), queue=self.FORGET_QUEUE)

    def use(self) -> None:
        self.init()
        self.getattr(ROOT)
        self.statfs()
        body = MKDIR_IN.pack(0o40775, 0o22) + names(b"usr")
        folder = Entry.parse(self.ask(Op.MKDIR, ROOT, body, room=[ENTRY_ROOM], ids=(USER, GROUP)))
        self._file(folder)
        self._access(folder)
        self._names(folder)
        self.ask(Op.RMDIR, ROOT, names(b"usr"))
        self.forget(folder.nodeid)
        self.ask(Op.DESTROY, ROOT)
        assert not any(self.share.iterdir())

    def _file(self, folder: Entry) -> None:
        body = CREATE_IN.pack(os.O_RDWR | O_CREAT, 0o100640, 0o22, 0) + names(b"f")
        data = self.ask(
            Op.CREATE, folder.nodeid, body, room=[ENTRY_ROOM, OPEN_ROOM], ids=(USER, GROUP)
        )
        entry, fh = Entry.parse(data), int(OPEN_OUT.unpack_from(data, ENTRY_ROOM)[0])
        text = os.urandom(70_000)
        self.write(entry.nodeid, fh, 0, text[:65536])
        self.write(entry.nodeid, fh, 65536, text[65536:])
        assert self.read(entry.nodeid, fh, 0, 65536) == text[:65536]
        assert self.read(entry.nodeid, fh, 65536, 65536) == text[65536:]
        self.release(entry.nodeid, fh)
        self.forget(entry.nodeid)
        found = self.path(b"usr/f").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (USER, GROUP, 0o640)

    def _access(self, folder: Entry) -> None:
        """A mount without default_permissions asks for each user's rights by ACCESS. The request
        does not contain the user's groups, and the file's group may be one of them. So every user
        gets the rights of the file's group. Only the owner and root may get more rights.
        """
        entry = self.lookup(folder.nodeid, b"f")
        for ids, mask, expected in (
            ((USER, 0), os.R_OK | os.W_OK, 0),
            ((USER + 9, GROUP), os.R_OK, 0),
            ((USER + 9, GROUP + 9), os.R_OK, 0),
            ((USER + 9, GROUP + 9), os.W_OK, errno.EACCES),
            ((0, 0), os.R_OK | os.W_OK, 0),
        ):
            error, _ = self.send(Op.ACCESS, entry.nodeid, ACCESS_IN.pack(mask, 0), ids=ids)
            assert error == expected, (ids, mask)
        self.forget(entry.nodeid)

    def _names(self, folder: Entry) -> None:
        entry = self.lookup(folder.nodeid, b"f")
        self.ask(
            Op.LINK, folder.nodeid, LINK_IN.pack(entry.nodeid) + names(b"g"), room=[ENTRY_ROOM]
        )
        self.ask(Op.RENAME, folder.nodeid, RENAME_IN.pack(ROOT) + names(b"g", b"h"))
        fh = self.opendir(folder.nodeid)
        assert {e.name for e in self.readdir(folder.nodeid, fh, 4096)} == {b".", b"..", b"f"}
        self.release(folder.nodeid, fh, Op.RELEASEDIR)
        error, _ = self.send(
            Op.GETXATTR, entry.nodeid, GETXATTR_IN.pack(100, 0) + names(b"user.x"), room=[100]
        )
        assert error in (errno.ENODATA, errno.ENOSYS, errno.EOPNOTSUPP)
        self.ask(Op.UNLINK, folder.nodeid, names(b"f"))
        self.ask(Op.UNLINK, ROOT, names(b"h"))
        self.forget(entry.nodeid, 2)
