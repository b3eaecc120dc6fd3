# SPDX-License-Identifier: Apache-2.0
"""A guest at work whose VMM sends a message that cannot be obeyed: the share goes on working."""

import struct

import pytest

from . import driver
from .driver import P_REPLY_ACK, Frontend, NoReplyError, Region
from .fuse import ROOT, Guest

U64 = struct.Struct("<Q")
FAR = Region(1 << 40, 4096, 1 << 50, 0)

# Number and payload of each message that lacks the fd it announces.
WITHOUT_FD = {
    "kick": (driver.SET_VRING_KICK, U64.pack(1)),
    "call": (driver.SET_VRING_CALL, U64.pack(1)),
    "err": (driver.SET_VRING_ERR, U64.pack(1)),
    "add": (driver.ADD_MEM_REG, U64.pack(0) + FAR.pack()),
    "in-flight": (driver.SET_INFLIGHT_FD, struct.pack("<QQHH4x", 1 << 16, 0, 2, 128)),
}


@pytest.fixture
def running(frontend: Frontend) -> Guest:
    guest = Guest(frontend)
    guest.init()
    return guest


@pytest.mark.parametrize("need_reply", [True, False])
@pytest.mark.parametrize("name", WITHOUT_FD)
def test_a_message_without_its_fd(running: Guest, name: str, need_reply: bool) -> None:
    frontend, (number, payload) = running.frontend, WITHOUT_FD[name]
    assert frontend.protocol_features & P_REPLY_ACK
    if need_reply:
        assert frontend.ack(number, payload) == 1
    else:
        frontend.send(number, payload)
    for _ in range(3):  # each lookup needs a kick, and a call when it is done
        running.lookup(ROOT, b".", queue=1)
    assert frontend.ask(driver.GET_QUEUE_NUM).u64


def test_an_eventfd_that_got_lost_is_not_the_next_one(running: Guest) -> None:
    """The calls of a message that lacks its eventfd do not go to the eventfd of the next
    message."""
    frontend = running.frontend
    for number in (driver.SET_VRING_CALL, driver.SET_VRING_ERR):
        fds = [] if number == driver.SET_VRING_CALL else [frontend.rings[1].err_fd]
        frontend.send(number, U64.pack(1), fds)
    running.lookup(ROOT, b".", queue=1)


def test_a_ring_that_starts_without_an_eventfd_is_polled(running: Guest) -> None:
    frontend = running.frontend
    ring = frontend.rings[1]
    frontend.stop_ring(1)
    ring.clear()
    state = struct.pack("<II", 1, 0)
    frontend.tell(driver.SET_VRING_NUM, struct.pack("<II", 1, ring.size))
    frontend.tell(driver.SET_VRING_BASE, state)
    frontend.tell(driver.SET_VRING_ADDR, frontend.addr_message(ring))
    frontend.send(driver.SET_VRING_KICK, U64.pack(1))
    frontend.tell(driver.SET_VRING_ENABLE, struct.pack("<II", 1, 1))
    running.lookup(ROOT, b".", queue=1)
    frontend.restart_ring(1)


def test_a_message_that_must_be_obeyed_ends_the_connection(running: Guest) -> None:
    frontend = running.frontend
    frontend.send(driver.SET_VRING_NUM, struct.pack("<II", 1, 64))  # while the vring is started
    with pytest.raises(NoReplyError, match=r"closed|reset"):
        frontend.receive()
    frontend.close()
