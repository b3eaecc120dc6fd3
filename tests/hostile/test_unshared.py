# SPDX-License-Identifier: Apache-2.0
"""Requests that name memory which the VMM does not share: answered if possible, and logged.

QEMU does not share memory that was plugged in without share=on. Linux before 7.1 does not look at
the used length of a reply: it takes a header that the daemon has not written for a reply.
"""

import errno
import re
from typing import NamedTuple

import pytest

from .conftest import Folder
from .daemon import Daemon, wait_until
from .driver import Segment
from .fuse import FORGET_IN, IN_HEADER, OUT_HEADER, ROOT, Guest, Op, read_in, write_in

pytestmark = pytest.mark.usefixtures("nobody_dies")
OUTSIDE = 0x1_2345_6000  # above all guest memory
UNIQUE = 77
LINE = re.compile(r"guest memory at (0x[0-9a-f]+) is not shared with virtiofsd")
ERROR = (OUT_HEADER.size, -errno.EIO, UNIQUE)
ANONYMOUS = (OUT_HEADER.size, -errno.EIO, 0)  # the daemon could not read the header


class Place(NamedTuple):
    """The guest memory of a request that is written by hand."""

    header: int
    argument: int
    reply: int
    data: int


@pytest.fixture(params=[False, True], ids=["direct", "indirect"])
def indirect(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def place(guest: Guest) -> Place:
    return Place(*(guest.memory.alloc(4096) for _ in range(4)))


def request(guest: Guest, place: Place, op: Op, nodeid: int, argument: bytes, more: int) -> None:
    """Put header and argument in their places; `more`: the number of bytes that follow
    elsewhere."""
    length = IN_HEADER.size + len(argument) + more
    guest.memory.write(place.header, IN_HEADER.pack(length, op, UNIQUE, nodeid, *[0] * 5))
    guest.memory.write(place.argument, argument)
    guest.memory.write(place.reply, b"\xee" * 64)


def answer(guest: Guest, place: Place, chain: list[Segment], indirect: bool) -> tuple[int, ...]:
    """What the reply's header says; an empty tuple if no header was written."""
    ring = guest.frontend.rings[1]
    head = ring.submit(chain, indirect=indirect)
    ring.publish()
    ring.kick()
    used = ring.wait(head)
    written = guest.memory.read(place.reply, 64)
    assert written[used:] == b"\xee" * (64 - used)
    return OUT_HEADER.unpack(written[:used]) if used else ()


def test_a_write_whose_data_is_not_shared(
    guest: Guest, folder: Folder, place: Place, indirect: bool
) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    argument = write_in(fh=fh, size=8192)
    request(guest, place, Op.WRITE, entry.nodeid, argument, 8192)
    chain = [
        Segment(place.header, IN_HEADER.size),
        Segment(place.argument, len(argument)),
        Segment(place.data, 4096),
        Segment(OUTSIDE, 4096),
        Segment(place.reply, 16 + 8, True),
    ]
    assert answer(guest, place, chain, indirect) == ERROR
    assert (folder.path / "x").read_bytes() == b""


def test_a_read_into_what_is_not_shared(
    guest: Guest, folder: Folder, place: Place, indirect: bool
) -> None:
    (folder.path / "x").write_bytes(b"content")
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    argument = read_in(fh=guest.open(nodeid), size=4096)
    request(guest, place, Op.READ, nodeid, argument, 0)
    chain = [
        Segment(place.header, IN_HEADER.size),
        Segment(place.argument, len(argument)),
        Segment(place.reply, 16, True),
        Segment(OUTSIDE, 4096, True),
    ]
    assert answer(guest, place, chain, indirect) == ERROR


def test_a_request_that_is_not_shared(guest: Guest, place: Place, indirect: bool) -> None:
    request(guest, place, Op.GETATTR, ROOT, bytes(16), 0)
    reply = Segment(place.reply, 64, True)
    header, argument = Segment(place.header, IN_HEADER.size), Segment(place.argument, 16)
    chain = [Segment(OUTSIDE, IN_HEADER.size), argument, reply]
    assert answer(guest, place, chain, indirect) == ANONYMOUS
    assert answer(guest, place, [header, Segment(OUTSIDE, 16), reply], indirect) == ERROR


def test_a_reply_that_is_not_shared(guest: Guest, place: Place, indirect: bool) -> None:
    request(guest, place, Op.GETATTR, ROOT, bytes(16), 0)
    chain = [
        Segment(place.header, IN_HEADER.size),
        Segment(place.argument, 16),
        Segment(OUTSIDE, 16, True),
        Segment(place.reply, 64, True),
    ]
    assert answer(guest, place, chain, indirect) == ()
    assert answer(guest, place, [Segment(OUTSIDE, 64), Segment(OUTSIDE, 64, True)], indirect) == ()


def test_what_has_no_reply_gets_none(guest: Guest, place: Place, indirect: bool) -> None:
    request(guest, place, Op.FORGET, 12345, FORGET_IN.pack(1), 0)
    chain = [
        Segment(place.header, IN_HEADER.size),
        Segment(OUTSIDE, 8),
        Segment(place.reply, 16, True),
    ]
    assert answer(guest, place, chain, indirect) == ()


def test_other_malformed_chains_are_answered_too(guest: Guest, place: Place) -> None:
    """Chains with a readable descriptor after a writable one, or with more pieces than the device
    takes."""
    request(guest, place, Op.GETATTR, ROOT, bytes(16), 0)
    header, reply = Segment(place.header, IN_HEADER.size), Segment(place.reply, 64, True)
    chain = [header, reply, Segment(place.argument, 16)]
    assert answer(guest, place, chain, True) == ERROR
    pieces = [Segment(place.data + 2 * i, 1) for i in range(1100)]
    assert answer(guest, place, [header, *pieces, reply], True) == ERROR


def lines(daemon: Daemon) -> list[str]:
    return LINE.findall(daemon.log.read_text())


def test_it_is_logged_with_a_limit(daemon: Daemon, guest: Guest, place: Place) -> None:
    before = len(lines(daemon))
    request(guest, place, Op.GETATTR, ROOT, bytes(16), 0)
    chain = [
        Segment(place.header, IN_HEADER.size),
        Segment(OUTSIDE + 0x1000, 16),
        Segment(place.reply, 64, True),
    ]
    for _ in range(500):
        assert answer(guest, place, chain, True) == ERROR
    wait_until(lambda: lines(daemon), 10, "a line")
    assert set(lines(daemon)) <= {hex(OUTSIDE), hex(OUTSIDE + 0x1000)}
    assert len(lines(daemon)) - before < 30
