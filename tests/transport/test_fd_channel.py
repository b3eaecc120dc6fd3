# SPDX-License-Identifier: Apache-2.0
"""JSON packets with fds between supervisor and pool."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.supervisor.resume import open_fds
from vfsd.transport.errors import ProtocolError
from vfsd.transport.fd_channel import MAX_FDS, MAX_PACKET, FdChannel
from vfsd.transport.passed_fds import close_fds

Ends = tuple[FdChannel, FdChannel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = FdChannel.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_packet_comes_with_the_senders_pid(ends: Ends) -> None:
    ours, theirs = ends
    theirs.send({"event": "ready"})
    packet = ours.receive()
    assert packet is not None
    assert (packet.content, packet.fds, packet.pid) == ({"event": "ready"}, (), os.getpid())


def test_a_packet_to_the_pool_comes_with_its_fds(ends: Ends) -> None:
    ours, theirs = ends
    fds = [os.eventfd(0) for _ in range(3)]
    ours.send({"op": "adopt"}, fds)
    packet = theirs.receive()
    assert packet is not None
    assert packet.content == {"op": "adopt"}
    os.eventfd_write(fds[2], 5)
    assert os.eventfd_read(packet.fds[2]) == 5
    assert not os.get_inheritable(packet.fds[0])
    close_fds([*fds, *packet.fds])


def test_only_the_supervisors_end_learns_pids(ends: Ends) -> None:
    ours, theirs = ends
    ours.send({"op": "adopt"})
    packet = theirs.receive()
    assert packet is not None
    assert packet.pid is None


def test_packets_keep_their_limits(ends: Ends) -> None:
    ours, theirs = ends
    fds = [os.eventfd(0)] * MAX_FDS
    ours.send({"n": 1}, fds)
    packet = theirs.receive()
    assert packet is not None
    assert len(packet.fds) == MAX_FDS
    close_fds(packet.fds)
    with pytest.raises(ValueError, match="too large"):
        ours.send({}, [*fds, fds[0]])
    with pytest.raises(ValueError, match="too large"):
        ours.send({"text": "x" * MAX_PACKET})
    os.close(fds[0])


def test_the_other_end_closed_is_none(ends: Ends) -> None:
    ours, theirs = ends
    theirs.close()
    assert ours.receive() is None


@pytest.mark.parametrize("data", [b"x", b"[]", b"3", b'{"a":', b"\xff\xfe", b"[" * 60000])
def test_what_is_no_object_is_a_protocol_error(ends: Ends, data: bytes) -> None:
    ours, theirs = ends
    socket.send_fds(ours.socket, [data], [0])
    with pytest.raises(ProtocolError):
        theirs.receive()


@pytest.mark.parametrize("count", [1, 2, 100, 253])
@pytest.mark.parametrize("data", [b"{}", b"", b"x"])
def test_no_fd_of_the_pool_gets_into_the_supervisor(ends: Ends, data: bytes, count: int) -> None:
    ours, theirs = ends
    before = open_fds()
    socket.send_fds(theirs.socket, [data], [0] * count)
    try:
        assert ours.receive() is None
        assert data == b""
    except ProtocolError:
        assert data
    assert open_fds() == before


@pytest.mark.parametrize("data", [b"", b"x"])
def test_what_an_empty_packet_brings_is_closed(ends: Ends, data: bytes) -> None:
    ours, theirs = ends
    before = open_fds()
    socket.send_fds(ours.socket, [data], [0] * 100)
    try:
        assert theirs.receive() is None
    except ProtocolError:
        pass
    assert open_fds() == before


def test_a_packet_beyond_the_limits_leaves_no_fds(ends: Ends) -> None:
    ours, theirs = ends
    ours.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    socket.send_fds(ours.socket, [b"{}" + b" " * MAX_PACKET], [0, 0])
    with pytest.raises(ProtocolError, match="too large"):
        theirs.receive()
    socket.send_fds(ours.socket, [b"{}"], [0] * (MAX_FDS + 60))
    with pytest.raises(ProtocolError, match="too large"):
        theirs.receive()


@given(st.binary(min_size=1, max_size=200), st.integers(0, 5))
def test_any_packet_is_an_object_or_a_protocol_error(data: bytes, count: int) -> None:
    ours, theirs = FdChannel.pair()
    socket.send_fds(ours.socket, [data], [0] * count)
    try:
        packet = theirs.receive()
        assert packet is not None
        close_fds(packet.fds)
    except ProtocolError:
        pass
    ours.close()
    theirs.close()
