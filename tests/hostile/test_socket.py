# SPDX-License-Identifier: Apache-2.0
"""A hostile front-end: whatever it sends, the daemon lives and the next front-end is served.

Everything that ends in the sandbox (fds, memory, in-flight records) is tried in each sandbox mode.
All other input is read by the supervisor, which is the same in all modes.
"""

import errno
import fcntl
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import cannot_run
from tests.sandbox_modes import SandboxMode, in_each_mode, in_every_mode

from . import driver
from .daemon import Daemon, wait_until
from .driver import (
    HEADER,
    NEED_REPLY,
    VERSION,
    Frontend,
    GuestMemory,
    NoReplyError,
    Region,
    eventfd,
)
from .fuse import ROOT, Guest, Op, read_in

U64 = struct.Struct("<Q")
STATE = struct.Struct("<II")


def ordinary(daemon: Daemon, queues: int = 1) -> None:
    """A front-end that makes no mistake."""
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(queues))
        guest.init()
        for queue in range(1, queues + 1):
            guest.lookup(ROOT, b".", queue=queue)


def elders(daemon: Daemon) -> list[int]:
    """The pids of keeper and supervisor, which outlive connections."""
    return [pid for pid, title in daemon.pids().items() if "keeper" in title or "super" in title]


@pytest.fixture(autouse=True)
def next_one_is_served(daemon: Daemon) -> Iterator[None]:
    wait_until(lambda: len(elders(daemon)) == 2, 5, "keeper and supervisor")
    before = elders(daemon)
    yield
    ordinary(daemon)
    wait_until(lambda: elders(daemon) == before, 5, f"{before} and no other process")


@pytest.fixture
def fresh(daemon: Daemon) -> Iterator[Frontend]:
    """A connection on which no message was sent."""
    with Frontend(daemon.socket) as connected:
        yield connected


@pytest.fixture
def negotiated(fresh: Frontend) -> Frontend:
    """A connection with features and acknowledgements agreed on, without memory and rings."""
    fresh.negotiate()
    assert fresh.protocol_features & driver.P_REPLY_ACK
    return fresh


@pytest.fixture
def running(fresh: Frontend) -> Guest:
    """A guest at work on one request queue."""
    guest = Guest(fresh.setup(1))
    guest.init()
    return guest


def hangs_up(frontend: Frontend) -> bool:
    try:
        while True:
            frontend.receive()
    except NoReplyError as error:
        return "closed" in str(error) or "reset" in str(error)


# Bytes.


@pytest.mark.parametrize(
    "raw",
    [
        bytes(12),
        b"\xff" * 12,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        HEADER.pack(driver.GET_FEATURES, 0, 0),
        HEADER.pack(driver.GET_FEATURES, 2, 0),
        HEADER.pack(driver.GET_FEATURES, 5, 0),
        HEADER.pack(driver.GET_FEATURES, VERSION, (1 << 32) - 1),
        HEADER.pack(driver.SET_FEATURES, VERSION, 1 << 31),
        HEADER.pack(driver.SET_MEM_TABLE, VERSION, 4097),
        os.urandom(4096),
    ],
    ids=range(10),
)
def test_bytes_that_are_no_message_end_the_connection(fresh: Frontend, raw: bytes) -> None:
    fresh.send_raw(raw)
    assert hangs_up(fresh)


@pytest.mark.parametrize("size", [1, 4, 11, 12, 13, 15, 19])
def test_a_front_end_that_goes_away_in_the_middle_of_a_message(fresh: Frontend, size: int) -> None:
    message = HEADER.pack(driver.SET_FEATURES, VERSION, 8) + bytes(8)
    fresh.send_raw(message[:size], [fresh.memory.fd])


def test_a_message_that_comes_byte_by_byte(fresh: Frontend) -> None:
    for byte in HEADER.pack(driver.GET_FEATURES, VERSION, 0):
        fresh.send_raw(bytes([byte]))
        time.sleep(0.005)
    assert fresh.receive().u64


def test_a_message_that_never_ends_holds_nothing_up(running: Guest) -> None:
    running.frontend.send_raw(HEADER.pack(driver.SET_FEATURES, VERSION, 8) + bytes(3))
    for _ in range(20):
        running.lookup(ROOT, b".")


@pytest.mark.parametrize("number", [0, 6, 7, 19, 20, 22, 23, 26, 28, 33, 35, 39, 41, 42, 44, 99])
def test_an_unknown_message(negotiated: Frontend, number: int) -> None:
    assert negotiated.ack(number, U64.pack(0)), (
        "the message was acknowledged as if it had been obeyed"
    )
    assert negotiated.ask(driver.GET_FEATURES).u64
    negotiated.send(number, U64.pack(0))
    assert hangs_up(negotiated)


# The payload sizes of each message; -1 stands for all other sizes, which are wrong.
SIZES = {
    driver.SET_FEATURES: 8,
    driver.SET_PROTOCOL_FEATURES: 8,
    driver.SET_MEM_TABLE: 8,
    driver.SET_VRING_NUM: 8,
    driver.SET_VRING_ADDR: 40,
    driver.SET_VRING_BASE: 8,
    driver.SET_VRING_KICK: 8,
    driver.SET_VRING_CALL: 8,
    driver.SET_VRING_ERR: 8,
    driver.SET_VRING_ENABLE: 8,
    driver.SET_INFLIGHT_FD: 24,
    driver.ADD_MEM_REG: 40,
    driver.REM_MEM_REG: 40,
}


@pytest.mark.parametrize("number", SIZES)
def test_payloads_of_a_wrong_size(negotiated: Frontend, number: int) -> None:
    for size in {0, 1, 4, 7, 9, 20, 39, 41, 100, 1000, 4096} - {SIZES[number], 20}:
        assert negotiated.ack(number, b"\x01" + bytes(size - 1) if size else b"") != 0


@in_each_mode
@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 16])
def test_a_wrong_number_of_fds(daemon: Daemon, negotiated: Frontend, count: int) -> None:
    fds = [negotiated.memory.fd] * count
    region = negotiated.memory.regions[0]
    table = STATE.pack(2, 0) + region.pack() + negotiated.memory.regions[1].pack()
    wrong = [
        (driver.SET_MEM_TABLE, table, 2),
        (driver.ADD_MEM_REG, negotiated.region_message(region), 1),
        (driver.SET_VRING_CALL, U64.pack(0), 1),
    ]
    before = idle_fds(daemon)
    if count <= 8:  # fds that a message may not have are closed, and nothing else happens
        negotiated.ack(driver.SET_FEATURES, U64.pack(negotiated.features), fds)
        negotiated.ack(driver.SET_VRING_NUM, STATE.pack(0, 128), fds)
        negotiated.ack(driver.SET_VRING_CALL, U64.pack(1 << 8), fds)
    for number, payload, right in wrong:
        if count == right:
            continue
        try:
            assert negotiated.ack(number, payload, fds) != 0, number
        except (NoReplyError, BrokenPipeError):
            assert count > 8, "the connection may end only after more than 8 fds"
            return
    after = daemon.fd_counts()
    assert all(after[pid] <= before[pid] for pid in before if pid in after), "fds stay open"


# Rings.


@pytest.mark.parametrize("index", [9, 10, 255, 256, 65, 1 << 16, 1 << 31, (1 << 32) - 1])
def test_unknown_queue_indexes(negotiated: Frontend, index: int) -> None:
    for number in (
        driver.SET_VRING_NUM,
        driver.SET_VRING_BASE,
        driver.SET_VRING_ENABLE,
    ):
        assert negotiated.ack(number, STATE.pack(index, 1)) != 0
    assert negotiated.ack(driver.SET_VRING_ADDR, STATE.pack(index, 0) + bytes(32)) != 0
    event = eventfd()
    for number in (driver.SET_VRING_KICK, driver.SET_VRING_CALL, driver.SET_VRING_ERR):
        if not index & 1 << 8:
            assert negotiated.ack(number, U64.pack(index), [event]) != 0
    os.close(event)


@pytest.mark.parametrize("size", [0, 3, 127, 129, 65536, 1 << 16 | 128, 1 << 31, (1 << 32) - 1])
def test_ring_sizes_that_cannot_be(negotiated: Frontend, size: int) -> None:
    negotiated.set_memory()
    assert negotiated.ack(driver.SET_VRING_NUM, STATE.pack(1, size)) != 0
    negotiated.start_ring(negotiated.add_ring(1))


@pytest.mark.parametrize("size", [1, 2, 4, 16, 1024, 4096, 32768])
def test_ring_sizes_that_can(fresh: Frontend, size: int) -> None:
    guest = Guest(fresh.setup(1, size), indirect=True)
    guest.init()
    for _ in range(3):
        guest.lookup(ROOT, b".")


@pytest.mark.parametrize("base", [0, 0x1000, 1 << 47, 1 << 63, (1 << 64) - 4096, (1 << 64) - 16])
def test_ring_addresses_outside_memory(negotiated: Frontend, base: int) -> None:
    """The ring does not run; when the addresses are corrected it runs."""
    negotiated.set_memory()
    ring = negotiated.add_ring(1)
    good = struct.unpack("<IIQQQQ", negotiated.addr_message(ring))
    for place in (2, 3, 4):
        bad = [*good]
        bad[place] = base
        negotiated.tell(driver.SET_VRING_NUM, STATE.pack(1, 128))
        if negotiated.ack(driver.SET_VRING_ADDR, struct.pack("<IIQQQQ", *bad)) == 0:
            negotiated.ack(driver.SET_VRING_KICK, U64.pack(1), [ring.kick_fd])
            negotiated.ack(driver.SET_VRING_ENABLE, STATE.pack(1, 1))
            negotiated.stop_ring(1)
    negotiated.start_ring(ring)
    Guest(negotiated).init()


@pytest.mark.parametrize("offset", [1, 2, 8, 15])
def test_ring_addresses_that_are_not_aligned(negotiated: Frontend, offset: int) -> None:
    negotiated.set_memory()
    ring = negotiated.add_ring(1)
    fields = [*struct.unpack("<IIQQQQ", negotiated.addr_message(ring))]
    fields[2] += offset
    assert negotiated.ack(driver.SET_VRING_ADDR, struct.pack("<IIQQQQ", *fields)) != 0


def test_a_ring_that_ends_just_beyond_its_region(negotiated: Frontend) -> None:
    negotiated.set_memory()
    ring = negotiated.add_ring(1)
    end = negotiated.memory.regions[0].uva + negotiated.memory.regions[0].size
    fields = [*struct.unpack("<IIQQQQ", negotiated.addr_message(ring))]
    fields[2] = end - 16 * 128 + 16
    negotiated.tell(driver.SET_VRING_NUM, STATE.pack(1, 128))
    if negotiated.ack(driver.SET_VRING_ADDR, struct.pack("<IIQQQQ", *fields)) == 0:
        negotiated.ack(driver.SET_VRING_KICK, U64.pack(1), [ring.kick_fd])
        negotiated.ack(driver.SET_VRING_ENABLE, STATE.pack(1, 1))
        ring.kick()
        negotiated.stop_ring(1)


def test_rings_started_in_every_wrong_order(negotiated: Frontend) -> None:
    ring = negotiated.add_ring(1)
    kick = (driver.SET_VRING_KICK, U64.pack(1), [ring.kick_fd])
    enable: tuple[int, bytes, list[int]] = (driver.SET_VRING_ENABLE, STATE.pack(1, 1), [])
    addr: tuple[int, bytes, list[int]] = (driver.SET_VRING_ADDR, negotiated.addr_message(ring), [])
    num: tuple[int, bytes, list[int]] = (driver.SET_VRING_NUM, STATE.pack(1, 128), [])
    for order in ([kick, enable], [enable, kick], [addr, kick], [num, kick], [num, addr, enable]):
        for number, payload, fds in order:
            negotiated.ack(number, payload, fds)
        negotiated.ask(driver.GET_VRING_BASE, STATE.pack(1, 0))
        negotiated.tell(driver.RESET_DEVICE)
    negotiated.set_memory()
    negotiated.start_ring(ring)
    Guest(negotiated).init()


def test_rings_before_features(fresh: Frontend) -> None:
    fresh.send(driver.SET_VRING_NUM, STATE.pack(1, 128))
    with suppress(BrokenPipeError):  # the first message was enough
        fresh.send(driver.SET_VRING_ENABLE, STATE.pack(1, 1))
    hangs_up(fresh)


def test_features_nobody_offered(negotiated: Frontend) -> None:
    for bit in (0, 24, 33, 34, 35, 63):
        assert negotiated.ack(driver.SET_FEATURES, U64.pack(negotiated.features | 1 << bit)) != 0
    for bit in (2, 14, 21, 22, 63):
        wanted = negotiated.protocol_features | 1 << bit
        assert negotiated.ack(driver.SET_PROTOCOL_FEATURES, U64.pack(wanted)) != 0


@in_each_mode
@pytest.mark.parametrize("kind", ["pipe", "socket", "memfd", "directory", "null", "epoll", "path"])
def test_a_kick_fd_that_is_no_eventfd(negotiated: Frontend, kind: str) -> None:
    read_end, write_end = os.pipe()
    pair = socket.socketpair()
    fds = {
        "pipe": read_end,
        "socket": pair[0].fileno(),
        "memfd": negotiated.memory.fd,
        "directory": os.open("/", os.O_RDONLY),
        "null": os.open("/dev/null", os.O_RDWR),
        "epoll": os.dup(read_end),
        "path": os.open("/", os.O_PATH),
    }
    negotiated.set_memory()
    ring = negotiated.add_ring(1)
    negotiated.tell(driver.SET_VRING_NUM, STATE.pack(1, 128))
    negotiated.tell(driver.SET_VRING_ADDR, negotiated.addr_message(ring))
    for number in (driver.SET_VRING_KICK, driver.SET_VRING_CALL, driver.SET_VRING_ERR):
        assert negotiated.ack(number, U64.pack(1), [fds[kind]]) != 0
    negotiated.start_ring(ring)
    Guest(negotiated).init()
    for end in pair:
        end.close()
    for fd in {read_end, write_end, fds["directory"], fds["null"], fds["epoll"], fds["path"]}:
        os.close(fd)


def test_a_call_eventfd_that_blocks(daemon: Daemon, fresh: Frontend) -> None:
    """A full eventfd without O_NONBLOCK must not make a worker block in write(2)."""
    guest = Guest(fresh.setup(1))
    guest.init()
    ring = fresh.rings[1]
    os.close(ring.call_fd)
    ring.call_fd = os.eventfd((1 << 32) - 1, os.EFD_CLOEXEC)
    fresh.tell(driver.SET_VRING_CALL, U64.pack(1), [ring.call_fd])
    os.eventfd_read(ring.call_fd)
    os.eventfd_write(ring.call_fd, (1 << 64) - 2)
    before = daemon.pids()
    for _ in range(3):
        guest.submit(Op.GETATTR, ROOT, bytes(16), room=104)
        time.sleep(0.02)
    guest.lookup(ROOT, b".", queue=0)
    fresh.stop_ring(1)
    assert daemon.pids().keys() == before.keys(), "the worker had to be killed"


# Memory.


def test_regions_that_cannot_be(negotiated: Frontend) -> None:
    memory = negotiated.memory
    top = (1 << 64) - 4096
    for region in (
        Region(memory.BASE, 0, memory.UVA, 0),
        Region(top, 8192, memory.UVA, 0),
        Region(memory.BASE, 8192, top, 0),
        Region(memory.BASE, 8192, memory.UVA, top),
        Region(memory.BASE, (1 << 64) - 1, memory.UVA, 1),
        Region(memory.BASE, memory.size + 4096, memory.UVA, 0),
        Region(memory.BASE, 4096, memory.UVA, memory.size),
        Region(memory.BASE, 1 << 47, memory.UVA, 0),
    ):
        table = STATE.pack(1, 0) + region.pack()
        assert negotiated.ack(driver.SET_MEM_TABLE, table, [memory.fd]) != 0, region
        message = negotiated.region_message(region)
        assert negotiated.ack(driver.ADD_MEM_REG, message, [memory.fd]) != 0, region
    for count in (9, 100, 1 << 31, (1 << 32) - 1):
        table = STATE.pack(count, 0) + memory.regions[0].pack() * 8
        assert negotiated.ack(driver.SET_MEM_TABLE, table, [memory.fd] * 8) != 0


def test_regions_that_overlap(negotiated: Frontend) -> None:
    memory = negotiated.memory
    one = memory.regions[0]
    two = Region(one.gpa + one.size - 4096, one.size, one.uva + (1 << 30), one.offset)
    table = STATE.pack(2, 0) + one.pack() + two.pack()
    assert negotiated.ack(driver.SET_MEM_TABLE, table, [memory.fd] * 2) != 0
    negotiated.tell(driver.ADD_MEM_REG, negotiated.region_message(one), [memory.fd])
    assert negotiated.ack(driver.ADD_MEM_REG, negotiated.region_message(two), [memory.fd]) != 0


@pytest.fixture
def deep_file(tmp_path: Path) -> Iterator[int]:
    """A file whose path is longer than readlink(2) of its fd can return (ENAMETOOLONG)."""
    name, folder = "d" * 250, os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    file = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=folder)
    os.close(folder)
    yield file
    os.close(file)


@in_each_mode
def test_a_file_whose_path_cannot_be_read(negotiated: Frontend, deep_file: int) -> None:
    os.ftruncate(deep_file, negotiated.memory.size)
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        Path(f"/proc/self/fd/{deep_file}").readlink()
    for number in (driver.SET_VRING_KICK, driver.SET_VRING_CALL, driver.SET_VRING_ERR):
        assert negotiated.ack(number, U64.pack(1), [deep_file]) != 0
    message = negotiated.region_message(negotiated.memory.regions[0])
    assert negotiated.ack(driver.ADD_MEM_REG, message, [deep_file]) == 0


@in_every_mode
def test_regions_of_what_is_no_memory(negotiated: Frontend) -> None:
    read_end, write_end = os.pipe()
    folder, path = os.open("/", os.O_RDONLY), os.open("/", os.O_PATH)
    region = Region(GuestMemory.BASE, 4096, GuestMemory.UVA, 0)
    memory = os.open(f"/proc/self/fd/{negotiated.memory.fd}", os.O_PATH)
    fds = (read_end, write_end, folder, path, memory, eventfd())
    for fd in fds:
        message = negotiated.region_message(region)
        assert negotiated.ack(driver.ADD_MEM_REG, message, [fd]) != 0
        table = STATE.pack(1, 0) + region.pack()
        assert negotiated.ack(driver.SET_MEM_TABLE, table, [fd]) != 0
    for fd in fds:
        os.close(fd)


@in_each_mode
@pytest.mark.parametrize("asked", ["auto", "prefer"])
def test_memory_in_a_file_of_a_disk_works_and_is_warned_of(
    sandbox_mode: SandboxMode, asked: str
) -> None:
    """A worker that opens file handles by itself reaches the file system of each fd that it has.

    With `auto` a broker opens handles here: the share is not the whole of its file system. The
    daemon is the test's own: if a daemon refuses many messages, its log leaves out lines about the
    VMM.
    """
    warned = "warning: guest memory is in the file '/var/tmp/"
    with (
        tempfile.TemporaryFile(dir="/var/tmp") as file,
        Daemon(f"--inode-file-handles={asked}", mode=sandbox_mode) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        frontend.negotiate()
        file.truncate(frontend.memory.size)
        with suppress(OSError):
            fcntl.fcntl(file.fileno(), fcntl.F_GET_SEALS)
            cannot_run("/var/tmp is in memory")
        message = frontend.region_message(frontend.memory.regions[0])
        assert frontend.ack(driver.ADD_MEM_REG, message, [file.fileno()]) == 0
        # The line is written before the acknowledgement is sent.
        is_warned = asked == "prefer" and sandbox_mode.is_privileged
        assert daemon.log.read_text().count(warned) == is_warned


@in_each_mode
def test_memory_that_may_only_be_read(negotiated: Frontend) -> None:
    """The fd passes as memory until a worker maps it: then no ring runs, and nothing else
    happens."""
    memory = negotiated.memory
    fd = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDONLY)
    table = STATE.pack(2, 0) + memory.regions[0].pack() + memory.regions[1].pack()
    negotiated.ack(driver.SET_MEM_TABLE, table, [fd, fd])
    os.close(fd)
    ring = negotiated.add_ring(1)
    negotiated.start_ring(ring)
    negotiated.stop_ring(1)
    negotiated.set_memory()
    negotiated.start_ring(ring)
    Guest(negotiated).init()


@in_each_mode
@pytest.mark.parametrize("left", [0, 4096, 1 << 20, 16 << 20])
def test_memory_that_is_cut_short_while_in_use(daemon: Daemon, running: Guest, left: int) -> None:
    """SIGBUS in a worker: the memory of rings, buffers or tables is suddenly missing."""
    memory = running.memory
    (daemon.share / "big").write_bytes(bytes(1 << 20))
    file = running.lookup(ROOT, b"big").nodeid
    fh = running.open(file)
    body = read_in(fh=fh, size=1 << 20)
    for _ in range(4):
        running.submit(Op.READ, file, body, room=1 << 20, pieces=(40, 40, 65536), kick=False)
    ring = running.frontend.rings[1]
    before = daemon.pids()
    os.truncate(memory.fd, left)
    ring.kick()
    time.sleep(0.2)
    # Python would die of the same SIGBUS, so the mapping is not touched until the file has its size
    # again.
    os.truncate(memory.fd, memory.size)
    assert daemon.pids().keys() == before.keys(), "a worker died"
    running.frontend.set_memory()
    running.frontend.restart_ring(1)
    running.frontend.restart_ring(0)
    running.init()
    running.lookup(ROOT, b"big")


def test_regions_come_and_go_under_running_rings(running: Guest) -> None:
    frontend = running.frontend
    spare = GuestMemory(1 << 20, regions=1)
    extra = Region(1 << 40, 1 << 20, 1 << 50, 0)
    message = frontend.region_message(extra)
    for _ in range(30):
        frontend.tell(driver.ADD_MEM_REG, message, [spare.fd])
        running.lookup(ROOT, b".")
        frontend.tell(driver.REM_MEM_REG, message)
        running.lookup(ROOT, b".")
    assert frontend.ack(driver.REM_MEM_REG, message) != 0
    spare.close()


def test_more_regions_than_slots(negotiated: Frontend) -> None:
    slots = negotiated.ask(driver.GET_MAX_MEM_SLOTS).u64
    fd = negotiated.memory.fd
    for i in range(slots + 3):
        region = Region((1 << 40) + i * 8192, 4096, (1 << 50) + i * 8192, 0)
        refused = negotiated.ack(driver.ADD_MEM_REG, negotiated.region_message(region), [fd])
        assert bool(refused) == (i >= slots)


@in_each_mode
def test_the_memory_of_a_running_ring_is_taken_away(running: Guest) -> None:
    """REM_MEM_REG of the region with the rings: the rings stand still, and go on when it is
    back."""
    frontend = running.frontend
    region = frontend.memory.regions[0]
    message = frontend.region_message(region)
    frontend.tell(driver.SET_MEM_TABLE, STATE.pack(0, 0))
    pending = running.submit(Op.GETATTR, ROOT, bytes(16), room=104)
    with pytest.raises(NoReplyError):
        running.finish(pending, 0.2)
    for part in frontend.memory.regions:
        frontend.tell(driver.ADD_MEM_REG, frontend.region_message(part), [frontend.memory.fd])
    running.finish(pending)
    assert message


# The in-flight record.


def inflight_message(size: int, offset: int, queues: int, entries: int) -> bytes:
    return struct.pack("<QQHH4x", size, offset, queues, entries)


def test_an_inflight_record_given_and_taken(negotiated: Frontend) -> None:
    reply = negotiated.ask(driver.GET_INFLIGHT_FD, inflight_message(0, 0, 2, 128))
    assert len(reply.fds) == 1
    size, offset, queues, entries = struct.unpack_from("<QQHH", reply.data)
    assert (queues, entries) == (2, 128)
    assert os.fstat(reply.fds[0]).st_size >= size + offset
    negotiated.tell(driver.SET_INFLIGHT_FD, reply.data, reply.fds)
    negotiated.set_memory()
    for index in range(2):
        negotiated.start_ring(negotiated.add_ring(index))
    guest = Guest(negotiated)
    guest.init()
    for _ in range(300):
        guest.lookup(ROOT, b".")
    for fd in reply.fds:
        os.close(fd)


def test_inflight_records_that_cannot_be(negotiated: Frontend) -> None:
    for queues, entries in ((0, 128), (65535, 128), (2, 0), (2, 65535)):
        message = inflight_message(0, 0, queues, entries)
        try:
            reply = negotiated.ask(driver.GET_INFLIGHT_FD, message)
        except NoReplyError:
            return  # there is no other way to refuse a message that has a reply
        assert not reply.fds
    fd = negotiated.memory.fd
    for size, offset, queues, entries in (
        (0, 0, 2, 128),
        (100, 0, 2, 128),
        (1 << 63, 1 << 63, 2, 128),
        ((1 << 64) - 1, 0, 2, 128),
        (1 << 40, 0, 2, 128),
        (1 << 20, negotiated.memory.size, 2, 128),
    ):
        message = inflight_message(size, offset, queues, entries)
        refused = negotiated.ack(driver.SET_INFLIGHT_FD, message, [fd])
        assert refused


@in_each_mode
@pytest.mark.parametrize("pattern", [b"\xff", b"\x01", b"\x80\x7f"])
def test_an_inflight_record_full_of_lies(negotiated: Frontend, pattern: bytes) -> None:
    """The record is the front-end's memory: a worker may not believe any index in it."""
    reply = negotiated.ask(driver.GET_INFLIGHT_FD, inflight_message(0, 0, 2, 128))
    (fd,) = reply.fds
    size = os.fstat(fd).st_size
    os.pwrite(fd, (pattern * size)[:size], 0)
    negotiated.tell(driver.SET_INFLIGHT_FD, reply.data, [fd])
    negotiated.set_memory()
    for index in range(2):
        negotiated.start_ring(negotiated.add_ring(index))
    guest = Guest(negotiated)
    pending = guest.submit(Op.GETATTR, ROOT, bytes(16), room=104)
    for _ in range(20):
        os.pwrite(fd, os.urandom(size), 0)
        time.sleep(0.005)
    del pending
    os.truncate(fd, size)
    os.close(fd)


@in_each_mode
def test_an_inflight_record_cut_short(daemon: Daemon, negotiated: Frontend) -> None:
    """A foreign fd is refused, as it lacks the seal that our fd has, or the daemon survives it."""
    fd = os.memfd_create("inflight")
    os.truncate(fd, 1 << 16)
    message = inflight_message(1 << 16, 0, 2, 128)
    refused = negotiated.ack(driver.SET_INFLIGHT_FD, message, [fd])
    if refused:
        os.close(fd)
        return
    negotiated.set_memory()
    for index in range(2):
        negotiated.start_ring(negotiated.add_ring(index))
    guest = Guest(negotiated)
    guest.init()
    before = daemon.pids()
    os.truncate(fd, 0)
    guest.submit(Op.GETATTR, ROOT, bytes(16), room=104)
    time.sleep(0.2)
    assert daemon.pids().keys() == before.keys(), "a worker died"
    os.close(fd)


# Connections.


def test_a_probe_that_says_nothing(daemon: Daemon) -> None:
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(daemon.socket)


def test_a_flood_of_messages_without_reading_replies(fresh: Frontend) -> None:
    fresh.socket.settimeout(0.5)
    try:
        for _ in range(20_000):
            fresh.send(driver.GET_FEATURES)
    except (TimeoutError, OSError):
        pass  # the daemon stopped reading, or hung up


def idle_fds(daemon: Daemon) -> dict[int, int]:
    """The fds of keeper and supervisor by pid, as soon as the next pool is ready."""
    counts: dict[int, int] = {}
    while counts != (now := daemon.fd_counts()) or not daemon.titled("pool"):
        counts = now
        time.sleep(0.3)
    return {pid: counts[pid] for pid in elders(daemon)}


def test_reconnecting_leaks_no_fds(daemon: Daemon) -> None:
    for _ in range(3):
        ordinary(daemon)
    ordinary(daemon, 2)
    before = idle_fds(daemon)
    for turn in range(12):  # each connection starts a pool; a single fd that is left would show
        with Frontend(daemon.socket) as frontend:
            frontend.negotiate()
            frontend.set_memory()
            ring = frontend.add_ring(1)
            if turn % 4 == 0:
                frontend.start_ring(ring)
            else:
                frontend.tell(driver.SET_VRING_CALL, U64.pack(1), [ring.call_fd])
            if turn % 3 == 0:
                frontend.send(driver.SET_VRING_NUM, b"short", flags=VERSION | NEED_REPLY)
    ordinary(daemon, 2)
    wait_until(
        lambda: all(
            count <= before[pid] for pid, count in daemon.fd_counts().items() if pid in before
        ),
        5,
        f"no more fds than {before}: {daemon.fd_counts()}",
    )


@in_each_mode
def test_resets_and_stops_leak_no_fds_in_workers(daemon: Daemon, running: Guest) -> None:
    frontend = running.frontend
    running.lookup(ROOT, b".")
    for _ in range(3):
        frontend.restart_ring(1)
    before = daemon.fd_counts()
    for _ in range(50):
        frontend.restart_ring(1)
        running.lookup(ROOT, b".")
        frontend.tell(driver.SET_VRING_CALL, U64.pack(1), [frontend.rings[1].call_fd])
    after = daemon.fd_counts()
    assert before.keys() == after.keys()
    others = before.keys() - set(elders(daemon))  # a spare pool may start, with fds of theirs
    assert all(after[pid] <= before[pid] + 2 for pid in others), (before, after)


def test_reset_keeps_memory_features_and_calls(running: Guest) -> None:
    """QEMU sends RESET_DEVICE up to three times, and does not send memory, features and calls
    again."""
    frontend = running.frontend
    for _ in range(3):
        frontend.tell(driver.RESET_DEVICE)
    for index in (0, 1):
        ring = frontend.rings[index]
        ring.clear()
        frontend.tell(driver.SET_VRING_NUM, STATE.pack(index, ring.size))
        frontend.tell(driver.SET_VRING_BASE, STATE.pack(index, 0))
        frontend.tell(driver.SET_VRING_ADDR, frontend.addr_message(ring))
        frontend.tell(driver.SET_VRING_KICK, U64.pack(index), [ring.kick_fd])
        frontend.tell(driver.SET_VRING_ENABLE, STATE.pack(index, 1))
    running.init()
    running.lookup(ROOT, b".")
