# SPDX-License-Identifier: Apache-2.0
"""Directory offsets that lseek cannot reach, as on NFS and FUSE: every name is listed each time."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Dirent, Guest, Op, parse_dirents, read_in
from .fuse_server import FlatFileSystem, served

NAMES = [b"%d" % number for number in range(2000)]
WIDE = 1 << 63
COOKIES: dict[str, Callable[[int], int]] = {
    "all wide": lambda n: WIDE + n,
    "all ones at the end": lambda n: (1 << 64) - 1 - len(NAMES) + n,
    "the same but for one bit": lambda n: n // 2 + 1 + WIDE * (n % 2),
}


@pytest.fixture(params=COOKIES)
def share(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    server = FlatFileSystem(dict.fromkeys(NAMES, b""), COOKIES[request.param])
    with served(server, tmp_path / "mnt") as mounted:
        yield mounted


def read(guest: Guest, fh: int, offset: int, queue: int, room: int = 2048) -> list[Dirent]:
    body = read_in(fh=fh, offset=offset, size=room)
    return parse_dirents(guest.finish(
        guest.submit(Op.READDIR, ROOT, body, room=room, queue=queue)
    ).data, False)  # fmt: skip


def test_every_name_each_time(share: Path) -> None:
    with Daemon("--workers=2", share=share) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(2))
        guest.init()
        fh = guest.open(ROOT, os.O_RDONLY, op=Op.OPENDIR)
        found: list[Dirent] = []
        while entries := read(guest, fh, found[-1].off if found else 0, 1 + len(found) % 2):
            found += entries
        assert [e.name for e in found] == NAMES
        assert all(e.off < WIDE for e in found), "a guest's lseek must reach each offset"
        assert len({e.off for e in found}) == len(NAMES)
        for pid in daemon.titled("worker"):
            os.kill(pid, 9)
        wait_until(lambda: len(daemon.titled("worker")) == 2, 5, "workers again")
        chance = random.Random(1)  # noqa: S311
        for turn in range(10):  # seekdir
            at = chance.randrange(len(found) - 1)
            entries = read(guest, fh, found[at].off, 1 + turn % 2)
            assert [e.name for e in entries] == NAMES[at + 1 : at + 1 + len(entries)]
            assert entries
        assert not read(guest, fh, found[-1].off, 1)
        assert read(guest, fh, 0, 1)[0].name == NAMES[0]


def test_what_lies_in_the_buffer_is_not_read_again(share: Path) -> None:
    """A guest with a small buffer of its own asks again for entries that it has already
    received."""
    with Daemon(share=share) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        fh = guest.open(ROOT, os.O_RDONLY, op=Op.OPENDIR)
        names: list[bytes] = []
        offset = 0
        while entries := read(guest, fh, offset, 1, 4096)[:10]:
            names += [e.name for e in entries]
            offset = entries[-1].off
        assert names == NAMES
