# SPDX-License-Identifier: Apache-2.0
"""Each message that cannot be obeyed, with and without need_reply: the share lives or ends as the
table of refusals says."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import pytest

from vfsd.supervisor.refusal import REFUSALS, Fate
from vfsd.transport.vhost_user import MESSAGES, Number, encode_message
from vfsd.transport.vhost_user_payloads import (
    U64,
    Config,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Payload,
    Region,
    VringAddr,
    VringFd,
    VringState,
)

from .daemon import Daemon, wait_until
from .frontend import REGION, UVA, Frontend

N = Number
QUEUES = 2
VMM_LINE = re.compile(r"^vfsd: vm001: VMM: (warning|error): ", re.MULTILINE)
ELSEWHERE = Region(1 << 40, 4096, 1 << 50, 0)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """One daemon serves every test here, and its pools come and go."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    options = ("--keep-listening", "--tag=x", "--log-level=debug")  # debug: a higher rate limit
    with Daemon(tmp_path_factory.mktemp("refusal"), *options) as running:
        yield running


@pytest.fixture(scope="module")
def connections(daemon: Daemon) -> Iterator[list[Frontend]]:
    """The connection in use, or none; a test that ends the connection removes it from the list."""
    del daemon
    kept: list[Frontend] = []
    yield kept
    for connected in kept:
        connected.close()


@pytest.fixture
def frontend(daemon: Daemon, connections: list[Frontend]) -> Frontend:
    """A front-end whose vrings run."""
    if not connections:
        connections.append(Frontend(daemon.path))
        connections[0].realize(QUEUES, unwanted=0)
        connections[0].driver_ok(QUEUES)
    return connections[0]


def has_ended(connections: list[Frontend]) -> bool:
    """Has the daemon closed the connection without sending a byte before?"""
    ended = connections.pop()
    is_closed = ended.is_closed()
    ended.close()
    return is_closed


@dataclass(frozen=True)
class Bytes:
    """A payload of arbitrary bytes."""

    data: bytes

    def pack(self) -> bytes:
        return self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(data)


@dataclass(frozen=True)
class Wrong:
    """A message that cannot be obeyed. `fd`: it comes with the fd of guest memory."""

    number: Number
    payload: Payload
    fd: bool = False

    def __str__(self) -> str:
        return f"{self.number.name} {self.payload}{' with an fd' if self.fd else ''}"

    def encoded(self, need_reply: bool) -> bytes:
        return encode_message(self.number, self.payload, need_reply)


# A payload of four bytes is wrong for every message.
SHORT = [Wrong(number, Bytes(bytes(4))) for number in N]
WRONG = [
    Wrong(N.SET_VRING_CALL, VringFd(0, True)),
    Wrong(N.SET_VRING_CALL, VringFd(0, True), fd=True),
    Wrong(N.SET_VRING_ERR, VringFd(0, True)),
    Wrong(N.SET_VRING_ERR, VringFd(0, True), fd=True),
    Wrong(N.SET_VRING_KICK, VringFd(0, True)),
    Wrong(N.SET_VRING_KICK, VringFd(0, True), fd=True),
    Wrong(N.ADD_MEM_REG, MemoryRegion(ELSEWHERE)),
    Wrong(N.ADD_MEM_REG, MemoryRegion(replace(ELSEWHERE, offset=1 << 40)), fd=True),
    Wrong(N.ADD_MEM_REG, MemoryRegion(replace(REGION, uva=1 << 50)), fd=True),
    Wrong(N.REM_MEM_REG, MemoryRegion(ELSEWHERE)),
    Wrong(N.SET_MEM_TABLE, MemoryTable((REGION,))),
    Wrong(N.SET_INFLIGHT_FD, Inflight(4096, 0, 1, 128)),
    Wrong(N.SET_INFLIGHT_FD, Inflight(4096, 0, 1, 128), fd=True),
    Wrong(N.GET_INFLIGHT_FD, Inflight(0, 0, 99, 128)),
    Wrong(N.SET_CONFIG, Config(0, 1, 0, b"x")),
    Wrong(N.SET_FEATURES, U64(1 << 60)),
    Wrong(N.SET_PROTOCOL_FEATURES, U64(1 << 60)),
    Wrong(N.SET_VRING_NUM, VringState(0, 64)),
    Wrong(N.SET_VRING_ADDR, VringAddr(0, 0, UVA, UVA, UVA, 0)),
    Wrong(N.SET_VRING_BASE, VringState(0, 1)),
    Wrong(N.SET_VRING_ENABLE, VringState(0, 2)),
    Wrong(N.SET_VRING_NUM, VringState(99, 64)),
    Wrong(N.SET_VRING_CALL, VringFd(99, True)),
    Wrong(N.GET_VRING_BASE, VringState(99, 0)),
]


def send(frontend: Frontend, wrong: Wrong, need_reply: bool) -> None:
    fds = (frontend.memory,) if wrong.fd else ()
    frontend.socket.send(wrong.encoded(need_reply), fds)


def is_served(frontend: Frontend) -> bool:
    """Do the connection and the vrings live? Each worker must adopt a change of the device."""
    return frontend.set_mem_table() == 0


def reply(frontend: Frontend) -> bytes:
    """The payload of the next reply."""
    message = frontend.socket.receive()
    assert message is not None, "the connection has ended"
    assert not message.fds
    return message.payload


def fate(wrong: Wrong) -> Fate:
    if wrong.payload == VringFd(99, True):
        return Fate.ENDS  # no worker serves that vring
    if wrong.number is N.SET_VRING_KICK and not wrong.fd and isinstance(wrong.payload, VringFd):
        return Fate.PASSED_OVER  # the vring is polled
    return REFUSALS[wrong.number].fate


@pytest.mark.parametrize("wrong", [*SHORT, *WRONG], ids=str)
def test_without_an_acknowledgement(
    daemon: Daemon, connections: list[Frontend], frontend: Frontend, wrong: Wrong
) -> None:
    log = len(daemon.text())
    send(frontend, wrong, need_reply=False)
    match fate(wrong):
        case Fate.ENDS:
            assert has_ended(connections)
            wait_until(lambda: "error: disconnected the VMM" in daemon.text()[log:])
            return
        case Fate.ANSWERED:
            assert int.from_bytes(reply(frontend), "little") == 0
    assert is_served(frontend)
    assert len(VMM_LINE.findall(daemon.text()[log:])) == 1


@pytest.mark.parametrize("wrong", [*SHORT, *WRONG], ids=str)
def test_with_an_acknowledgement(
    connections: list[Frontend], frontend: Frontend, wrong: Wrong
) -> None:
    send(frontend, wrong, need_reply=True)
    if not MESSAGES[wrong.number].reply:
        assert reply(frontend) == U64(1).pack()
    elif fate(wrong) is Fate.ENDS:
        assert has_ended(connections)
        return
    else:
        assert int.from_bytes(reply(frontend), "little") == 0
    assert is_served(frontend)
