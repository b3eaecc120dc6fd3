# SPDX-License-Identifier: Apache-2.0
"""READ of files opened with O_DIRECT: many requests at a time, each with the right bytes."""

import errno
import itertools
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import OPTIONS, QUEUES, Folder
from .daemon import Daemon
from .driver import Segment
from .fuse import IN_HEADER, OUT_HEADER, Guest, Op, Pending, expect, read_in
from .test_recovery import Killer
from .test_syscalls import Strace

BLOCK = 4096
BLOCKS = 2048
DEPTH = 32

_uniques = itertools.count(1 << 40, 2)


@pytest.fixture(scope="module", params=["16-threads", "no-threads"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    threads = request.param.split("-")[0].replace("no", "0")
    with Daemon(*OPTIONS, "-o", "allow_direct_io", f"--thread-pool-size={threads}") as running:
        yield running


def numbered(folder: Folder) -> Path:
    """A file whose blocks are filled with their own numbers; its last block is half a block
    long."""
    path = folder.path / "blocks"
    content = b"".join(number.to_bytes(8, "little") * (BLOCK // 8) for number in range(BLOCKS))
    path.write_bytes(content + b"end" * 100)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def opened(guest: Guest, folder: Folder) -> tuple[int, int]:
    numbered(folder)
    nodeid = guest.lookup(folder.nodeid, b"blocks").nodeid
    return nodeid, guest.open(nodeid, os.O_RDONLY | os.O_DIRECT)


def submit(guest: Guest, file: tuple[int, int], number: int, kick: bool = True) -> Pending:
    """Send a READ of a block into a page, since O_DIRECT needs that alignment."""
    nodeid, fh = file
    memory, queue, unique = guest.memory, 1 + number % QUEUES, next(_uniques)
    body = read_in(fh=fh, offset=number * BLOCK, size=BLOCK)
    header = IN_HEADER.pack(
        IN_HEADER.size + len(body), Op.READ, unique, nodeid, 0, 0, os.getpid(), 0, 0
    )
    request, room = memory.alloc(len(header + body)), memory.alloc(OUT_HEADER.size)
    memory.write(request, header + body)
    data = memory.alloc(2 * BLOCK)
    page = (data + BLOCK - 1) // BLOCK * BLOCK
    writable = [Segment(room, OUT_HEADER.size, True), Segment(page, BLOCK, True)]
    readable = [Segment(request, len(header + body), False)]
    ring = guest.frontend.rings[queue]
    head = ring.submit([*readable, *writable], indirect=True)
    ring.publish()
    if kick:
        ring.kick()
    buffers = [(request, len(header + body)), (room, OUT_HEADER.size), (data, 2 * BLOCK)]
    return Pending(Op.READ, unique, queue, head, buffers, writable)


def check(guest: Guest, pending: Pending, number: int) -> None:
    reply = guest.finish(pending)
    assert reply.error == 0, os.strerror(reply.error)
    assert reply.data == number.to_bytes(8, "little") * (BLOCK // 8)


def test_many_reads_at_a_time_get_their_own_blocks(guest: Guest, folder: Folder) -> None:
    file, chance = opened(guest, folder), random.Random(7)  # noqa: S311
    for _ in range(30):
        numbers = [chance.randrange(BLOCKS) for _ in range(DEPTH)]
        waiting = [(submit(guest, file, number), number) for number in numbers]
        chance.shuffle(waiting)
        for pending, number in waiting:
            check(guest, pending, number)


def test_the_end_of_the_file_and_what_is_not_aligned(guest: Guest, folder: Folder) -> None:
    file = opened(guest, folder)
    assert guest.finish(submit(guest, file, BLOCKS)).data == b"end" * 100
    assert guest.finish(submit(guest, file, BLOCKS + 1)).data == b""
    odd = read_in(fh=file[1], offset=5, size=BLOCK)
    expect(errno.EINVAL, guest.ask(Op.READ, file[0], odd, room=BLOCK))


def test_a_batch_is_one_call(
    daemon: Daemon, guest: Guest, folder: Folder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = opened(guest, folder)
    numbers = [number * QUEUES for number in range(DEPTH)]  # the whole of queue 1
    watch = Strace(daemon, tmp_path / "strace")
    waiting = [(submit(guest, file, number, kick=False), number) for number in numbers]
    guest.frontend.rings[1].kick()
    for pending, number in waiting:
        check(guest, pending, number)
    calls: Counter[str] = watch.stop()
    if "no-threads" in request.node.name:
        assert calls["preadv"] == DEPTH, dict(calls)
        assert not calls["io_submit"]
    else:
        assert 1 <= calls["io_submit"] <= 4, dict(calls)


def test_a_killed_worker_leaves_no_read_undone(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    file, chance = opened(guest, folder), random.Random(8)  # noqa: S311
    with Killer(lambda: daemon.titled("worker")) as killer:
        while killer.kills < 8:
            numbers = [chance.randrange(BLOCKS) for _ in range(DEPTH)]
            for pending, number in [(submit(guest, file, n), n) for n in numbers]:
                check(guest, pending, number)


def test_rings_stop_while_reads_are_under_way(guest: Guest, folder: Folder) -> None:
    file = opened(guest, folder)
    for turn in range(10):
        for number in range(DEPTH):
            submit(guest, file, number)
        for queue in range(1, QUEUES + 1):
            guest.frontend.restart_ring(queue)
        check(guest, submit(guest, file, turn), turn)
