# SPDX-License-Identifier: Apache-2.0
"""OSv, a read-only client. It sets length, opcode, unique and nodeid in the header. The other bytes
of the request are memory that OSv has used before for something else.
"""

import errno
import itertools
import os

from tests.hostile.fuse import ROOT, Op, names, read_in

from .driver import INIT_LONG, Driver

PATH_MAX = 4096
# Old content of that memory: uid, gid and pid, and the last two words of 16 bits.
LEFT_IDS = ((0xDEAD, 0xBEEF, 7), (0, 0, 0), (0xFFFFFFFF, 0xFFFFFFFE, 0x80000000))
LEFT_WORDS = ((3, 0xFFFF), (0x7FFF, 1), (1, 0))
DIRENT_ROOM = 280  # one entry with the longest name


class Osv(Driver):
    SOURCE = "cloudius-systems/osv, fs/virtiofs"
    MINOR = 32
    INIT_NODEID = ROOT
    INIT_BYTES = INIT_LONG  # OSv's struct fuse_init_in may also be the short one

    _ids = itertools.cycle(LEFT_IDS)
    _words = itertools.cycle(LEFT_WORDS)

    def ids(self) -> tuple[int, int, int]:
        return next(self._ids)

    def last_words(self) -> tuple[int, int]:
        return next(self._words)

    def use(self) -> None:
        (self.share / "lib").mkdir()
        text = os.urandom(10_000)
        (self.share / "lib" / "libc.so").write_bytes(text)
        (self.share / "libc").symlink_to("lib/libc.so")
        self.init()
        folder = self.lookup(ROOT, b"lib")
        entry = self.lookup(folder.nodeid, b"libc.so")
        self.refused(errno.ENOENT, Op.LOOKUP, folder.nodeid, names(b"libm.so"))
        fh = self.open(entry.nodeid, os.O_RDONLY)
        assert self.read(entry.nodeid, fh, 0, 4096) == text[:4096]
        assert self.read(entry.nodeid, fh, 8192, len(text) - 8192) == text[8192:]
        # OSv puts flags of its virtual file system into a READ.
        body = read_in(fh=fh, size=10, flags=0x10000)
        assert self.ask(Op.READ, entry.nodeid, body, room=[10]) == text[:10]
        self.release(entry.nodeid, fh)
        link = self.lookup(ROOT, b"libc")
        target = self.ask(Op.READLINK, link.nodeid, room=[PATH_MAX], exact=False)
        assert target == b"lib/libc.so"
        self._list()
        for name in ("lib/libc.so", "libc"):
            (self.share / name).unlink()
        (self.share / "lib").rmdir()

    def _list(self) -> None:
        """OSv uses one entry of each reply."""
        fh = self.opendir(ROOT)
        found = self.readdir(ROOT, fh, DIRENT_ROOM, per_reply=1)
        assert {e.name for e in found} == {b".", b"..", b"lib", b"libc"}
        self.release(ROOT, fh, Op.RELEASEDIR)
