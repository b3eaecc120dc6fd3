# SPDX-License-Identifier: Apache-2.0
"""Names of more than 255 bytes, which FAT, exFAT, NTFS and ZFS have, work as all other names do."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .daemon import Daemon
from .driver import Frontend
from .fuse import ROOT, STATFS_OUT, Guest, Op, expect, names
from .fuse_server import FlatFileSystem, served

LONG = "漢".encode() * 100
LONGER = "漢".encode() * 255 + b"x" * 200
NAME_MAX = 1000


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Path]:
    files = {b"short": b"s", LONG: b"long", LONGER: b"longer"}
    with served(FlatFileSystem(files, lambda n: n, NAME_MAX), tmp_path / "mnt") as mounted:
        yield mounted


def test_they_are_listed_read_moved_and_removed(share: Path) -> None:
    with Daemon(share=share) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        for plus in (False, True):
            assert {LONG, LONGER} < {e.name for e in guest.list(ROOT, plus=plus)}
        reply = guest.call(Op.STATFS, ROOT, room=STATFS_OUT.size)
        assert STATFS_OUT.unpack(reply)[6] == NAME_MAX
        for name, content in ((LONG, b"long"), (LONGER, b"longer")):
            nodeid = guest.lookup(ROOT, name).nodeid
            fh = guest.open(nodeid, os.O_RDONLY)
            assert guest.read(nodeid, fh, 0, 99) == content
            guest.release(nodeid, fh)
        guest.call(Op.UNLINK, ROOT, names(LONG))
        guest.call(Op.RENAME, ROOT, ROOT.to_bytes(8, "little") + names(LONGER, LONG))
        expect(errno.ENOENT, guest.ask(Op.LOOKUP, ROOT, names(LONGER), room=128))
        guest.call(Op.UNLINK, ROOT, names(LONG))
        assert [e.name for e in guest.list(ROOT)] == [b"short"]


def test_what_is_too_long_for_the_host_is_too_long(share: Path) -> None:
    with Daemon(share=share.parent) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        for length, what in ((255, errno.ENOENT), (256, errno.ENAMETOOLONG), (4096, None)):
            reply = guest.ask(Op.LOOKUP, ROOT, names(b"x" * length), room=128)
            expect(what or errno.ENAMETOOLONG, reply)
