# SPDX-License-Identifier: Apache-2.0
"""Requests, chains and messages that hypothesis draws at random, bounded in number."""

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import QUEUES, Folder
from .daemon import Daemon
from .driver import D_INDIRECT, HEADER, Frontend, GuestMemory, NoReplyError
from .fuse import IN_HEADER, OUT_HEADER, ROOT, Guest, Op, names

BOUNDED = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# A request that may rightly never be answered, and a request that could fill the disk.
NOT_DRAWN = {Op.SETLKW, Op.FALLOCATE}
INTERESTING = st.sampled_from(
    [0, 1, 2, 3, 0x7F, 0xFF, 4096, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]
)
WORDS = st.one_of(INTERESTING, st.integers(0, (1 << 64) - 1)).map(lambda n: struct.pack("<Q", n))
NAMES = st.sampled_from([b"a", b"b", b"..", b".", b"", b"a/b", b"x" * 256, b"file", b"dir"])


@pytest.fixture(autouse=True)
def nobody_dies(daemon: Daemon, guest: Guest, folder: Folder) -> Iterator[None]:
    before = daemon.pids()
    yield
    guest.init()
    for queue in range(1, QUEUES + 1):
        guest.lookup(ROOT, folder.name, queue=queue)
    assert daemon.pids().keys() == before.keys()


@BOUNDED
@given(data=st.data())
def test_requests_with_arguments_of_any_bytes(
    guest: Guest, folder: Folder, data: st.DataObject
) -> None:
    guest.init()
    nodeid = guest.lookup(ROOT, folder.name).nodeid
    (folder.path / "file").touch()
    (folder.path / "dir").mkdir(exist_ok=True)
    file = guest.lookup(nodeid, b"file").nodeid
    fh = guest.open(file, os.O_RDWR)
    known = st.sampled_from([struct.pack("<Q", n) for n in (nodeid, file, fh, ROOT)])
    piece = st.one_of(known, WORDS, NAMES.map(names), st.binary(max_size=40))
    for _ in range(data.draw(st.integers(1, 10))):
        op = data.draw(st.sampled_from(sorted({*Op} - NOT_DRAWN)))
        where = data.draw(st.sampled_from([nodeid, file, ROOT, 0, 99]))
        body = b"".join(data.draw(st.lists(piece, max_size=8)))
        if op == Op.SETATTR and where != file:
            body = bytes(4) + body[4:]  # the next example needs the folder in the same state
        if where == ROOT:
            where = nodeid
        # FUSE_INTERRUPT and FORGET have no reply; finish() checks the others.
        pending = guest.submit(op, where, body, room=data.draw(st.integers(0, 5000)))
        reply = guest.used_bytes(pending)
        if len(reply) >= OUT_HEADER.size:
            assert OUT_HEADER.unpack_from(reply)[0] == len(reply)
            assert OUT_HEADER.unpack_from(reply)[2] == pending.unique


@BOUNDED
@given(
    request=st.one_of(
        st.binary(max_size=200),
        st.tuples(st.binary(min_size=36, max_size=36), st.binary(max_size=100)).map(
            lambda parts: struct.pack("<I", 40 + len(parts[1])) + parts[0] + parts[1]
        ),
    ),
    room=st.integers(-1, 300),
)
def test_requests_of_any_bytes(guest: Guest, request: bytes, room: int) -> None:
    opcode = int.from_bytes(request[4:8], "little")
    if opcode in NOT_DRAWN or not request:
        return
    guest.used_bytes(guest.submit_raw(request, room, queue=2))


DESCRIPTORS = st.lists(
    st.tuples(
        st.one_of(
            st.integers(GuestMemory.BASE, GuestMemory.BASE + (1 << 16)),
            st.integers(0, (1 << 64) - 1),
        ),
        st.one_of(st.sampled_from([0, 1, 16, 40, 56, 4096]), st.integers(0, (1 << 32) - 1)),
        st.integers(0, 7),
        st.integers(0, 40),
    ),
    min_size=1,
    max_size=40,
)


@BOUNDED
@given(descriptors=DESCRIPTORS, table=DESCRIPTORS)
def test_chains_of_any_descriptors(
    guest: Guest,
    folder: Folder,
    descriptors: list[tuple[int, int, int, int]],
    table: list[tuple[int, int, int, int]],
) -> None:
    memory, ring = guest.memory, guest.frontend.rings[3]
    header = IN_HEADER.pack(56, Op.GETATTR, 5, folder.nodeid, 0, 0, 0, 0, 0)
    gpa = memory.alloc(4096)
    memory.write(gpa, header)
    for index, descriptor in enumerate(table):
        memory.write(gpa + 64 + 16 * index, struct.pack("<QIHH", *descriptor))
    for index, (addr, size, flags, next_) in enumerate(descriptors):
        if flags & D_INDIRECT and index % 2:
            addr, size = gpa + 64, 16 * len(table)
        ring.write_desc(index, addr, size, flags, next_)
    ring.chains[0] = []
    ring.offer(0)
    ring.publish()
    ring.kick()
    # A descriptor may name the ring itself as room for the reply: in that case the ring starts
    # again.
    try:
        ring.wait(0, 0.5)
    except (NoReplyError, AssertionError):
        guest.frontend.restart_ring(3)
    memory.free(gpa, 4096)


MESSAGES = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=64).map(lambda raw: (raw, 0)),
        st.tuples(
            st.builds(
                lambda number, flags, payload: HEADER.pack(number, flags, len(payload)) + payload,
                st.integers(0, 45),
                st.sampled_from([1, 1, 9, 5, 0, 2, 0xFFFFFFFF]),
                st.lists(WORDS, max_size=6).map(b"".join),
            ),
            st.integers(0, 8),
        ),
    ),
    max_size=12,
)


@settings(BOUNDED, max_examples=60)
@given(messages=MESSAGES)
def test_messages_of_any_bytes(daemon_alone: Daemon, messages: list[tuple[bytes, int]]) -> None:
    daemon = daemon_alone
    with Frontend(daemon.socket) as frontend:
        try:
            for raw, fds in messages:
                frontend.send_raw(raw, [frontend.memory.fd] * fds)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon hung up, as it may
    assert not daemon.exited()


@pytest.fixture(scope="module")
def daemon_alone() -> Iterator[Daemon]:
    """A daemon with no connection; at the end an ordinary connection works, in the same
    supervisor."""
    with Daemon("--keep-listening") as running:
        before = running.pids()
        yield running
        with Frontend(running.socket) as frontend:
            guest = Guest(frontend.setup(1))
            guest.init()
            guest.getattr(ROOT)
            assert [pid for pid in before if pid in running.pids()][:2] == sorted(before)[:2]
