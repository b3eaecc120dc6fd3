# SPDX-License-Identifier: Apache-2.0
"""Hostile rings: impossible descriptors and indexes, and memory that changes while it is read.

A malformed chain costs its own request; an impossible index costs its own ring until the ring is
started again. Neither of them costs a process or another ring.
"""

import os
import random
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

import psutil
import pytest

from tests.sandbox_modes import in_default_mode, in_every_mode
from tests.waiting import HANG

from .conftest import Folder
from .daemon import Daemon
from .driver import D_INDIRECT, D_NEXT, D_WRITE, DESC, NoReplyError, Ring, Segment
from .fuse import IN_HEADER, OUT_HEADER, ROOT, Guest, Op, names, read_in, write_in

OUTSIDE = [0, 0x1000, 0x4000_0000 - 8, 0x4200_0000 - 8, 0x4200_0000, 1 << 63, (1 << 64) - 8]


pytestmark = [pytest.mark.usefixtures("nobody_dies"), in_every_mode]


@pytest.fixture
def ring(guest: Guest) -> Ring:
    return guest.frontend.rings[1]


def getattr_request(guest: Guest, nodeid: int) -> int:
    """The guest address of a whole GETATTR request, 56 bytes."""
    gpa = guest.memory.alloc(56)
    guest.memory.write(gpa, IN_HEADER.pack(56, Op.GETATTR, 77, nodeid, 0, 0, 0, 0, 0) + bytes(16))
    return gpa


def push(ring: Ring, descriptors: list[tuple[int, int, int, int]]) -> int:
    """Write descriptors from index 0 on and offer head 0; return the used length."""
    for index, descriptor in enumerate(descriptors):
        ring.write_desc(index, *descriptor)
    ring.chains[0] = []
    ring.offer(0)
    ring.publish()
    ring.kick()
    return ring.wait(0)


# Chains.


@pytest.mark.parametrize("gpa", OUTSIDE)
@pytest.mark.parametrize("size", [16, 4096, (1 << 32) - 1])
def test_a_descriptor_outside_memory(
    guest: Guest, ring: Ring, folder: Folder, gpa: int, size: int
) -> None:
    good = getattr_request(guest, folder.nodeid)
    room = guest.memory.alloc(4096)
    assert push(ring, [(gpa, size, D_NEXT, 1), (room, 4096, D_WRITE, 0)]) in (0, 16)
    assert push(ring, [(good, 56, D_NEXT, 1), (gpa, size, D_WRITE, 0)]) in (0, 16)
    assert push(ring, [(gpa, size & ~15, D_INDIRECT, 0)]) == 0


@pytest.mark.parametrize("size", [(1 << 32) - 1, 1 << 31, 40 << 20])
def test_a_descriptor_that_runs_out_of_memory(guest: Guest, ring: Ring, size: int) -> None:
    good = getattr_request(guest, ROOT)
    assert push(ring, [(good, size, 0, 0)]) == 0
    assert push(ring, [(good, 56, D_NEXT, 1), (good, size, D_WRITE, 0)]) in (0, 16)


def test_loops(guest: Guest, ring: Ring) -> None:
    good = getattr_request(guest, ROOT)
    assert push(ring, [(good, 56, D_NEXT, 0)]) == 0
    assert push(ring, [(good, 40, D_NEXT, 1), (good, 16, D_NEXT, 0)]) == 0
    everything = [(good, 1, D_NEXT, (i + 1) % ring.size) for i in range(ring.size)]
    assert push(ring, everything) == 0
    table = guest.memory.alloc(64)
    guest.memory.write(table, DESC.pack(good, 56, D_NEXT, 0))
    assert push(ring, [(table, 16, D_INDIRECT, 0)]) == 0
    guest.memory.write(table, DESC.pack(good, 40, D_NEXT, 1) + DESC.pack(good, 16, D_NEXT, 0))
    assert push(ring, [(table, 32, D_INDIRECT, 0)]) == 0


@pytest.mark.parametrize("next_", [128, 129, 0x7FFF, 0xFFFF])
def test_a_next_beyond_the_table(guest: Guest, ring: Ring, next_: int) -> None:
    good = getattr_request(guest, ROOT)
    assert push(ring, [(good, 56, D_NEXT, next_)]) == 0
    table = guest.memory.alloc(64)
    guest.memory.write(table, DESC.pack(good, 56, D_NEXT, next_))
    assert push(ring, [(table, 32, D_INDIRECT, 0)]) == 0


def test_indirect_tables_that_cannot_be(guest: Guest, ring: Ring) -> None:
    good = getattr_request(guest, ROOT)
    table = guest.memory.alloc(4096)
    inner = guest.memory.alloc(64)
    guest.memory.write(inner, DESC.pack(good, 56, 0, 0))
    guest.memory.write(table, DESC.pack(good, 56, 0, 0))
    for size in (0, 1, 15, 17, 24):
        assert push(ring, [(table, size, D_INDIRECT, 0)]) == 0
    assert push(ring, [(table, 16, D_INDIRECT | D_NEXT, 1), (good, 56, 0, 0)]) == 0
    guest.memory.write(table, DESC.pack(inner, 16, D_INDIRECT, 0))
    assert push(ring, [(table, 16, D_INDIRECT, 0)]) == 0, "tables do not nest"


def test_an_indirect_table_at_the_end_of_a_direct_chain(guest: Guest, ring: Ring) -> None:
    """The WRITE flag of the indirect descriptor itself has no meaning (virtio 1.2 2.7.5.3.2)."""
    good = getattr_request(guest, ROOT)
    table, room = guest.memory.alloc(32), guest.memory.alloc(256)
    guest.memory.write(
        table, DESC.pack(good + 40, 16, D_NEXT, 1) + DESC.pack(room, 256, D_WRITE, 0)
    )
    assert push(ring, [(good, 40, D_NEXT, 1), (table, 32, D_INDIRECT | D_WRITE, 0)]) == 120


def test_readable_after_writable(guest: Guest, ring: Ring) -> None:
    good = getattr_request(guest, ROOT)
    room = guest.memory.alloc(4096)
    before = [(good, 40, D_NEXT, 1), (room, 200, D_WRITE | D_NEXT, 2), (good + 40, 16, 0, 0)]
    assert push(ring, before) in (0, 16)


def test_empty_descriptors_do_not_count(guest: Guest, ring: Ring) -> None:
    good = getattr_request(guest, ROOT)
    room = guest.memory.alloc(4096)
    used = push(
        ring,
        [
            (good, 0, D_NEXT, 1),
            (good, 56, D_NEXT, 2),
            (0, 0, D_WRITE | D_NEXT, 3),
            (room, 200, D_WRITE, 0),
        ],
    )
    assert used in (0, 16, 120)
    assert push(ring, [(good, 0, 0, 0)]) == 0


def test_a_chain_of_all_the_rings_descriptors(guest: Guest, ring: Ring) -> None:
    room = guest.memory.alloc(4096)
    good = getattr_request(guest, ROOT)
    chain = [(good + i, 1, D_NEXT, i + 1) for i in range(56)]
    chain += [(room + i, 1, D_WRITE | D_NEXT, i + 57) for i in range(ring.size - 57)]
    chain.append((room + 100, 100, D_WRITE, 0))
    assert push(ring, chain) == 120


@pytest.mark.parametrize("count", [1025, 2100, 20_000, 65_535])
def test_an_overlong_indirect_table(guest: Guest, ring: Ring, count: int) -> None:
    good = getattr_request(guest, ROOT)
    table = guest.memory.alloc(count * 16)
    room = guest.memory.alloc(2 * count)
    for flags in (0, D_WRITE):
        entries = [DESC.pack(good, 56, D_NEXT, 1)]
        entries += [DESC.pack(room + 2 * i, 1, flags | D_NEXT, i + 1) for i in range(1, count - 1)]
        entries.append(DESC.pack(room, 1, flags, 0))
        guest.memory.write(table, b"".join(entries))
        assert push(ring, [(table, count * 16, D_INDIRECT, 0)]) in (0, 16, 120)
    assert push(ring, [(table, ((1 << 32) - 1) & ~15, D_INDIRECT, 0)]) in (0, 16, 120)


@pytest.mark.parametrize("size", [0, 1])
def test_an_endless_indirect_table_of_next_to_nothing(
    daemon: Daemon, guest: Guest, ring: Ring, size: int
) -> None:
    """Two descriptors of length 0 form a circle, in a table that claims to have 2^28
    descriptors."""
    good = getattr_request(guest, ROOT)
    table = guest.memory.alloc(64)
    guest.memory.write(table, DESC.pack(good, size, D_NEXT, 1) + DESC.pack(good, size, D_NEXT, 0))
    pid = daemon.the("worker 0")
    worker = psutil.Process(pid)
    before = sum(worker.cpu_times()[:2])
    for _ in range(5):
        assert push(ring, [(table, 0xFFFF_FFF0, D_INDIRECT, 0)]) == 0
    spent = sum(worker.cpu_times()[:2]) - before
    assert spent < 1.0, "other requests and the control plane have to wait"


def test_a_chain_of_more_than_four_gigabytes(guest: Guest, ring: Ring) -> None:
    good = getattr_request(guest, ROOT)
    table, size = guest.memory.alloc(16 * 600), 15 << 20
    base = guest.memory.regions[1].gpa  # no other data is here
    entries = [DESC.pack(good, 56, D_NEXT, 1)]
    entries += [DESC.pack(base, size, D_WRITE | D_NEXT, i + 2) for i in range(598)]
    entries.append(DESC.pack(base, size, D_WRITE, 0))
    guest.memory.write(table, b"".join(entries))
    assert push(ring, [(table, 16 * 600, D_INDIRECT, 0)]) == 120


def test_a_reply_that_lands_on_its_own_request_and_ring(guest: Guest, ring: Ring) -> None:
    """The guest harms only itself: addresses may overlap any memory, including the ring."""
    good = getattr_request(guest, ROOT)
    assert push(ring, [(good, 56, D_NEXT, 1), (good, 200, D_WRITE, 0)]) in (0, 16, 120)
    good = getattr_request(guest, ROOT)
    for area, size in ring.areas():
        ring.write_desc(0, good, 56, D_NEXT, 1)
        ring.write_desc(1, area, min(size, 120), D_WRITE)
        ring.offer(0)
        ring.publish()
        ring.kick()
        guest.lookup(ROOT, b".", queue=2)
        ring = guest.frontend.restart_ring(1)


# Indexes.


def assert_broken(guest: Guest, ring: Ring) -> None:
    """The ring stands still and the front-end is notified; the other rings run; a new start cures
    it."""
    readable, _, _ = select.select([ring.err_fd], [], [], HANG)
    assert readable, "no process wrote to the error eventfd"
    os.eventfd_read(ring.err_fd)
    guest.lookup(ROOT, b".", queue=2)
    guest.lookup(ROOT, b".", queue=0 if ring.index else 1)
    guest.frontend.restart_ring(ring.index)
    guest.lookup(ROOT, b".", queue=ring.index)


@pytest.mark.parametrize("jump", [129, 1000, 0x7FFF, 0xFFFF])
def test_an_avail_index_further_ahead_than_the_ring(guest: Guest, ring: Ring, jump: int) -> None:
    ring.publish(ring.avail_idx + jump)
    ring.kick()
    assert_broken(guest, ring)


@pytest.mark.parametrize("head", [128, 129, 0x8000, 0xFFFF])
def test_a_head_beyond_the_table(guest: Guest, ring: Ring, head: int) -> None:
    ring.offer(head)
    ring.publish()
    ring.kick()
    assert_broken(guest, ring)


def test_the_same_head_many_times(guest: Guest, ring: Ring, folder: Folder) -> None:
    good = getattr_request(guest, folder.nodeid)
    room = guest.memory.alloc(4096)
    ring.write_desc(5, good, 56, D_NEXT, 6)
    ring.write_desc(6, room, 4096, D_WRITE)
    for _ in range(100):
        ring.offer(5)
    ring.publish()
    ring.kick()
    assert_broken(guest, ring)


def test_rings_break_one_after_another(guest: Guest) -> None:
    for index in (1, 2, 3, 4, 0):
        ring = guest.frontend.rings[index]
        ring.publish(ring.avail_idx + 500)
        ring.kick()
        assert select.select([ring.err_fd], [], [], HANG)[0]
    for index in (0, 1, 2, 3, 4):
        guest.frontend.restart_ring(index)


def test_the_hiprio_ring_breaks_and_request_rings_go_on(guest: Guest) -> None:
    ring = guest.frontend.rings[0]
    ring.publish(ring.avail_idx + 500)
    ring.kick()
    assert_broken(guest, ring)


def test_used_ring_and_events_scribbled_over(guest: Guest, ring: Ring, folder: Folder) -> None:
    """Only the daemon writes to the used ring; what a guest writes there is not believed."""
    for pattern in (b"\xff", b"\x00", b"\x5a"):
        guest.memory.write(ring.used, pattern * (6 + 8 * ring.size))
        pending = guest.submit(Op.GETATTR, folder.nodeid, bytes(16), room=104)
        time.sleep(0.02)
        guest.memory.write(ring.avail, pattern * 2)
        guest.lookup(ROOT, folder.name, queue=2)
        ring = guest.frontend.restart_ring(1)
        del pending


def test_kicks_without_work(guest: Guest, ring: Ring) -> None:
    for _ in range(1000):
        ring.kick()
    os.eventfd_write(ring.kick_fd, 1 << 63)
    guest.lookup(ROOT, b".")


def test_call_counter_at_its_limit(guest: Guest, ring: Ring, folder: Folder) -> None:
    """A guest that never takes its calls must not make a worker block in write(2)."""
    with suppress(BlockingIOError):
        os.eventfd_read(ring.call_fd)
    os.eventfd_write(ring.call_fd, (1 << 64) - 2)
    head = guest.submit(Op.GETATTR, folder.nodeid, bytes(16), room=104)
    for _ in range(3):
        guest.lookup(ROOT, folder.name, queue=2)
    os.eventfd_read(ring.call_fd)
    guest.finish(head)


# Memory that changes while it is read.


class Flipper(threading.Thread):
    """Writes random bytes to some places of guest memory until it is stopped."""

    def __init__(self, write: Callable[[random.Random], None]) -> None:
        super().__init__()
        self._write = write
        self._ended = threading.Event()

    def run(self) -> None:
        chance = random.Random(4711)  # noqa: S311
        while not self._ended.is_set():
            for _ in range(200):
                self._write(chance)
            time.sleep(0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


Bodies = list[tuple[int, int, bytes]]


@pytest.fixture
def bodies(guest: Guest, folder: Folder) -> Bodies:
    """Requests of all kinds, on an open file."""
    entry, fh = guest.create(folder.nodeid, b"data", queue=2)
    return [
        (Op.GETATTR, entry.nodeid, bytes(16)),
        (Op.LOOKUP, folder.nodeid, names(b"data")),
        (Op.READ, entry.nodeid, read_in(fh=fh, size=3000)),
        (Op.WRITE, entry.nodeid, write_in(fh=fh, size=900) + bytes(900)),
        (Op.READDIRPLUS, folder.nodeid, read_in(fh=fh, size=3000)),
        (Op.UNLINK, folder.nodeid, names(b"x")),
    ]


def hammer(guest: Guest, bodies: Bodies, seconds: float = 2.0) -> int:
    """Send requests on queue 1 for a while; return how often the ring had to be started again."""
    restarts = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            waiting = [guest.submit(*body, room=3000, pieces=(40, 24, 700)) for body in bodies]
            for pending in waiting:
                guest.used_bytes(pending, 0.1)
        except (NoReplyError, AssertionError, MemoryError, KeyError):
            guest.frontend.restart_ring(1)
            restarts += 1
    return restarts


@in_default_mode
@pytest.mark.parametrize("indirect", [False, True])
def test_descriptors_change_while_they_are_walked(
    guest: Guest, ring: Ring, bodies: Bodies, indirect: bool
) -> None:
    guest.indirect = indirect
    memory = guest.memory
    tables = [memory.alloc(16 * 16) for _ in range(8)]
    for table in tables:
        memory.free(table, 16 * 16)

    def write(chance: random.Random) -> None:
        base = chance.choice(tables) if indirect else ring.desc
        at = base + 16 * chance.randrange(16 if indirect else ring.size)
        field, size = chance.choice([(0, 8), (8, 4), (12, 2), (14, 2)])
        value = chance.choice([0, 1, 2, 3, 4, 16, 56, 127, 128, 0x4000_1000, (1 << 64) - 1])
        memory.write(at + field, value.to_bytes(8, "little")[:size])

    with Flipper(write):
        hammer(guest, bodies)
    guest.frontend.restart_ring(1)


@in_default_mode
def test_headers_and_arguments_change_while_they_are_read(guest: Guest, bodies: Bodies) -> None:
    memory = guest.memory
    buffers = []
    for size in (56, 64, 1024, 4096):
        buffers += [(memory.alloc(size), size) for _ in range(6)]
    for buffer in buffers:
        memory.free(*buffer)

    def write(chance: random.Random) -> None:
        gpa, size = chance.choice(buffers)
        if chance.random() < 0.7:  # len, opcode, nodeid, total_extlen
            field = chance.choice([0, 1, 2, 16, 36])
            memory.write(gpa + field, bytes([chance.randrange(256)]))
        else:
            memory.write(gpa + chance.randrange(size), chance.choice([b"\0", b"/", b"\xff"]))

    with Flipper(write):
        hammer(guest, bodies)
    guest.frontend.restart_ring(1)
    guest.init()  # a flipped opcode may have been DESTROY


@in_default_mode
def test_avail_ring_changes_while_it_is_read(guest: Guest, ring: Ring, bodies: Bodies) -> None:
    def write(chance: random.Random) -> None:
        if chance.random() < 0.02:
            guest.memory.write16(ring.avail + 2, chance.randrange(1 << 16))
        guest.memory.write16(
            ring.avail + 4 + 2 * chance.randrange(ring.size + 1), chance.randrange(200)
        )

    with Flipper(write):
        restarts = hammer(guest, bodies)
    assert restarts, "the ring never broke: nothing was tested"
    guest.frontend.restart_ring(1)


def test_a_request_is_read_once(guest: Guest, ring: Ring, folder: Folder) -> None:
    """A name that passes the check and then becomes "../x" must not be used."""
    inside, outside = b"abc\0\0\0\0\0", b"../abc\0\0"
    body = IN_HEADER.size + 8
    memory = guest.memory
    (folder.path / "abc").mkdir()
    (folder.path.parent / "abc").mkdir(exist_ok=True)
    gpa, room = memory.alloc(4096), memory.alloc(4096)
    request = IN_HEADER.pack(body, Op.RMDIR, 5, folder.nodeid, 0, 0, 0, 0, 0)
    memory.write(gpa, request + inside)
    turn = True

    def write(_: random.Random) -> None:
        nonlocal turn
        memory.write(gpa + IN_HEADER.size, outside if turn else inside)
        turn = not turn

    with Flipper(write):
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            heads = [ring.submit([Segment(gpa, body), Segment(room, 16, True)]) for _ in range(50)]
            ring.publish()
            ring.kick()
            for head in heads:
                assert ring.wait(head) == OUT_HEADER.size
            (folder.path / "abc").mkdir(exist_ok=True)
            assert (folder.path.parent / "abc").exists()
