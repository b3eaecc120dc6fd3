# SPDX-License-Identifier: Apache-2.0
"""The number of files that the guest may know, and the memory that forgotten files give back."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import LINUX_FLAGS, ROOT, Guest, Op

EXPORT_SUPPORT = 1 << 4
LIMIT = 100
FILES = 15_000
START_BYTES = 1 << 20  # of the table while the guest knows no file


def files_in(share: Path, count: int) -> None:
    for i in range(count):
        os.mknod(share / f"f{i}")


def known(guest: Guest, names: Iterable[int]) -> list[int]:
    return [guest.lookup(ROOT, b"f%d" % i).nodeid for i in names]


def refuses(guest: Guest, name: bytes) -> bool:
    return guest.ask(Op.LOOKUP, ROOT, name + b"\0", room=128).error == errno.ENFILE


def lines(daemon: Daemon, words: str) -> int:
    return sum(words in line for line in daemon.log.read_text().splitlines())


@pytest.mark.parametrize("handles", ["auto", "never"])
def test_the_limit_is_an_errno_and_a_line(handles: str) -> None:
    with (
        Daemon(f"--inode-limit={LIMIT}", f"--inode-file-handles={handles}") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        files_in(daemon.share, 2 * LIMIT)
        guest = Guest(frontend.setup(1))
        guest.init()
        nodeids = known(guest, range(LIMIT))
        assert refuses(guest, b"f%d" % LIMIT)
        assert refuses(guest, b"f%d" % (LIMIT + 1))
        assert known(guest, range(LIMIT)) == nodeids  # what is known stays known
        assert guest.getattr(nodeids[-1]).size == 0
        listed = [e for e in guest.list(ROOT, plus=True) if e.name.startswith(b"f")]
        assert len(listed) == 2 * LIMIT
        wait_until(lambda: lines(daemon, "and gets ENFILE for others") == 1, 20, "a line")
        assert lines(daemon, "--inode-limit") <= 2
        for nodeid in nodeids[:50]:
            guest.forget(nodeid, 3)
        wait_until(lambda: not refuses(guest, b"f%d" % LIMIT), 20, "there is room again")


def test_too_few_fds_are_a_line_as_well() -> None:
    with (
        Daemon("--rlimit-nofile=300", "--inode-file-handles=never") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        files_in(daemon.share, 400)
        guest = Guest(frontend.setup(1))
        guest.init()
        listed = [e for e in guest.list(ROOT, plus=True) if e.name.startswith(b"f")]
        assert len(listed) == 400
        assert any(e.entry and not e.entry.nodeid for e in listed)
        wait_until(lambda: lines(daemon, "--rlimit-nofile") == 1, 20, "a line")


def table_bytes(daemon: Daemon) -> int:
    """Memory of the inode table."""
    for fd in Path(f"/proc/{daemon.the('pool')}/fd").iterdir():
        if "memfd:vfsd-inodes" in str(fd.readlink()):
            return fd.stat().st_blocks * 512
    raise AssertionError("no inode table")


@pytest.mark.parametrize("handles", ["auto", "never"])
def test_memory_follows_what_is_known(handles: str) -> None:
    with (
        Daemon(f"--inode-file-handles={handles}") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        files_in(daemon.share, FILES)
        guest = Guest(frontend.setup(1))
        # With EXPORT_SUPPORT the files that were forgotten last would stay in the table.
        guest.init(flags=LINUX_FLAGS & ~EXPORT_SUPPORT)
        assert table_bytes(daemon) < START_BYTES
        first = known(guest, range(FILES))
        assert len(set(first)) == FILES
        assert table_bytes(daemon) > FILES * 100
        for nodeid in first:
            guest.forget(nodeid)
        wait_until(lambda: table_bytes(daemon) < START_BYTES, 20, "the memory is given back")
        again = known(guest, range(FILES))
        assert not set(first) & set(again)  # none is given out twice
        assert guest.ask(Op.GETATTR, first[0], bytes(16), room=104).error == errno.ESTALE
