# SPDX-License-Identifier: Apache-2.0
"""The driver side of a split virtqueue, with a device that is written in Python."""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from vfsd.frontend.guest_memory import GPA, GuestMemory
from vfsd.frontend.vmm import DriverVring
from vfsd.transport.native import ffi, lib, text

from .device import Device

SIZE = 8
BROKEN = lib.DRIVER_RING_BROKEN


class Driver:
    """A struct driver_ring, and the device that serves it."""

    def __init__(self, memory: GuestMemory, vring: DriverVring, event_idx: bool) -> None:
        config: Any = ffi.new("struct driver_ring_config *")
        vring.fill(config, memory, event_idx)
        self.ring: Any = ffi.new("struct driver_ring *")
        assert lib.driver_ring_init(self.ring, config) == 0
        self.memory = memory
        self.vring = vring
        self.device = Device(ffi.buffer(memory.addr, memory.size), vring)
        self.data = memory.allocate(4096)
        self.table = memory.allocate(4096)

    def add(self, token: int, readable: int, writable: int, *, indirect: bool = False) -> int:
        """Add a chain whose segments have 16 bytes each and follow each other in memory."""
        count = readable + writable
        segments: Any = ffi.new("struct driver_segment[]", count)
        for i in range(count):
            segments[i].addr = ffi.cast("char *", self.memory.addr) + self.data + 16 * i
            segments[i].len = 16
        chain: Any = ffi.new("struct driver_chain *")
        chain.segments, chain.readable, chain.writable = segments, readable, writable
        chain.token = token
        if indirect:
            chain.table = ffi.cast("char *", self.memory.addr) + self.table
        return lib.driver_ring_add(self.ring, chain)

    def kick(self) -> bool:
        """Publish the added chains; True if the device's eventfd was signalled."""
        asked = lib.driver_ring_kick(self.ring)
        try:
            kicked = os.eventfd_read(self.vring.kick_fd) > 0
        except BlockingIOError:
            kicked = False
        assert kicked == bool(asked)
        return kicked

    def take(self) -> tuple[int, int] | int:
        """Take a used element: its token and length, 0 if there is none, or BROKEN."""
        used: Any = ffi.new("struct driver_used *")
        result = lib.driver_ring_take(self.ring, used)
        return (used.token, used.len) if result == 1 else result

    def reason(self) -> str | None:
        return text(self.ring.reason)


@pytest.fixture(params=[True, False], ids=["event_idx", "flags"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with ExitStack() as stack:
        memory = stack.enter_context(GuestMemory(1 << 20))
        vring = DriverVring.create(0, SIZE, memory)
        stack.callback(vring.close)
        driver = Driver(memory, vring, request.param)
        stack.callback(lib.driver_ring_deinit, driver.ring)
        yield driver


@pytest.mark.parametrize("indirect", [True, False])
def test_the_device_sees_the_chain_that_was_added(driver: Driver, indirect: bool) -> None:
    assert driver.add(5, readable=2, writable=3, indirect=indirect) == 0
    assert driver.device.avail_idx == 0, "the chain is published before the kick"
    driver.kick()
    _, chain = driver.device.take()
    assert [(d.gpa - GPA - driver.data, d.size) for d in chain] == [(16 * i, 16) for i in range(5)]
    assert [d.writable for d in chain] == [False, False, True, True, True]


def test_a_used_element_brings_the_token_back(driver: Driver) -> None:
    assert driver.take() == 0
    assert driver.add(77, readable=1, writable=1) == 0
    driver.kick()
    head, _ = driver.device.take()
    driver.device.use(head, 16)
    assert driver.take() == (77, 16)
    assert driver.take() == 0
    assert driver.ring.free_count == SIZE


def test_a_full_ring_refuses_and_recovers(driver: Driver) -> None:
    assert driver.add(1, readable=3, writable=3) == 0
    assert driver.add(2, readable=3, writable=0) < 0
    assert driver.add(2, readable=2, writable=0) == 0
    assert driver.add(3, readable=1, writable=0, indirect=True) < 0
    driver.kick()
    head, _ = driver.device.take()
    driver.device.use(head, 0)
    assert driver.take() == (1, 0)
    assert driver.add(3, readable=3, writable=3) == 0


def test_a_ring_of_indirect_chains_holds_as_many_as_it_has_descriptors(driver: Driver) -> None:
    for token in range(SIZE):
        assert driver.add(token, readable=4, writable=4, indirect=True) == 0
    assert driver.add(SIZE, readable=1, writable=0, indirect=True) < 0


def test_many_chains_in_any_order(driver: Driver) -> None:
    """Each token comes back once, although indexes wrap and completions overtake each other."""
    rng = random.Random(1)  # noqa: S311
    waiting: dict[int, int] = {}
    token = 0
    for _ in range(170000):
        if rng.random() < 0.5:
            indirect = rng.random() < 0.5
            if driver.add(token, rng.randint(1, 2), rng.randint(0, 2), indirect=indirect) == 0:
                driver.kick()
                head, _ = driver.device.take()
                waiting[head] = token
                token += 1
        elif waiting:
            head = rng.choice(list(waiting))
            driver.device.use(head, 0)
            assert driver.take() == (waiting.pop(head), 0)
    assert token > 1 << 16
    assert driver.ring.outstanding == len(waiting)


@pytest.mark.parametrize("driver", [True], indirect=True)
def test_a_kick_only_where_the_device_wants_it(driver: Driver) -> None:
    driver.device.set_avail_event(0)
    assert driver.add(0, 1, 0) == 0
    assert driver.kick()
    assert driver.add(1, 1, 0) == 0
    assert not driver.kick(), "the device is still at work, as avail_event is behind"
    driver.device.set_avail_event(3)
    for token in (2, 3):
        assert driver.add(token, 1, 0) == 0
    assert driver.kick(), "avail_event is passed in the middle of a batch"
    assert not driver.kick(), "a kick without a new chain"


@pytest.mark.parametrize("driver", [False], indirect=True)
def test_a_kick_unless_a_flag_forbids_it(driver: Driver) -> None:
    assert driver.add(0, 1, 0) == 0
    assert driver.kick()
    driver.device.set_used_flags(1)
    assert driver.add(1, 1, 0) == 0
    assert not driver.kick()


def test_calls_are_asked_for_and_not(driver: Driver) -> None:
    assert driver.add(0, 1, 1) == 0
    driver.kick()
    lib.driver_ring_disable_calls(driver.ring)
    event_idx = driver.ring.event_idx
    assert driver.device.avail_flags == (0 if event_idx else 1)
    assert not lib.driver_ring_enable_calls(driver.ring)
    assert driver.device.avail_flags == 0
    driver.device.use(driver.device.take()[0], 16)
    assert lib.driver_ring_enable_calls(driver.ring), "the earlier used element is noticed"
    assert driver.take() == (0, 16)
    assert not lib.driver_ring_enable_calls(driver.ring)
    assert driver.device.used_event == (1 if event_idx else 0)


def test_a_length_beyond_the_chain_breaks_the_ring(driver: Driver) -> None:
    assert driver.add(9, readable=1, writable=1) == 0
    driver.kick()
    head, _ = driver.device.take()
    driver.device.use(head, 17)
    assert driver.take() == BROKEN
    assert driver.reason() == "used element longer than its chain has room"


@pytest.mark.parametrize("wrong", [SIZE, 0xFFFFFFFF, SIZE - 1])
def test_an_id_that_is_not_outstanding_breaks_the_ring(driver: Driver, wrong: int) -> None:
    assert driver.add(9, readable=1, writable=1) == 0
    driver.kick()
    driver.device.use(wrong, 0)
    assert driver.take() == BROKEN
    assert driver.reason() == "used element with an id that is not outstanding"


def test_a_chain_completed_twice_breaks_the_ring(driver: Driver) -> None:
    for token in (1, 2):
        assert driver.add(token, readable=1, writable=1) == 0
    driver.kick()
    head, _ = driver.device.take()
    driver.device.use(head, 0)
    driver.device.use(head, 0)
    assert driver.take() == (1, 0)
    assert driver.take() == BROKEN


@pytest.mark.parametrize("count", [2, 9, 0x8000, 0xFFFF])
def test_a_used_index_ahead_of_what_was_offered_breaks_the_ring(driver: Driver, count: int) -> None:
    assert driver.add(9, readable=1, writable=1) == 0
    driver.kick()
    driver.device.publish(count)
    assert driver.take() == BROKEN
    assert driver.reason() == "used index is ahead of what was offered"


@pytest.mark.parametrize("field", ["desc", "avail", "used"])
@pytest.mark.parametrize("offset", [1, (1 << 20) - 2, 1 << 20, 1 << 63])
def test_a_ring_outside_memory_is_refused(driver: Driver, field: str, offset: int) -> None:
    config: Any = ffi.new("struct driver_ring_config *")
    driver.vring.fill(config, driver.memory, event_idx=True)
    setattr(config, field, offset)
    assert lib.driver_ring_init(ffi.new("struct driver_ring *"), config) < 0


@pytest.mark.parametrize("size", [0, 3, 1 << 16])
def test_a_size_that_cannot_be_is_refused(driver: Driver, size: int) -> None:
    config: Any = ffi.new("struct driver_ring_config *")
    driver.vring.fill(config, driver.memory, event_idx=True)
    config.size = size
    assert lib.driver_ring_init(ffi.new("struct driver_ring *"), config) < 0
