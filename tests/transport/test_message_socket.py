# SPDX-License-Identifier: Apache-2.0
"""Messages over real sockets: framing, fds, limits."""

import array
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.transport.errors import ProtocolError
from vfsd.transport.message_socket import MessageSocket, RawMessage
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.vhost_user import Header, Number, encode_message
from vfsd.transport.vhost_user_payloads import U64, MemoryTable, Region, VringFd

Pair = tuple[socket.socket, MessageSocket]
FEATURES = encode_message(Number.SET_FEATURES, U64(5))
KICK = encode_message(Number.SET_VRING_KICK, VringFd(1, True))


@pytest.fixture
def pair() -> Iterator[Pair]:
    peer, ours = socket.socketpair()
    ours.setblocking(False)
    with peer:
        wrapped = MessageSocket(ours)
        yield peer, wrapped
        wrapped.close()


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    fds = [os.eventfd(0) for _ in range(12)]
    yield fds
    close_fds(fds)


def send(peer: socket.socket, data: bytes, fds: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    peer.sendmsg([data], ancillary)


def open_fd_count() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def is_same_file(fd: int, other: int) -> bool:
    os.eventfd_write(fd, 7)
    return os.eventfd_read(other) == 7


def test_a_message_comes_with_its_fds(pair: Pair, eventfds: list[int]) -> None:
    peer, ours = pair
    send(peer, KICK, eventfds[:1])
    message = ours.receive()
    assert message is not None
    assert (message.header, message.payload) == (Header(12, 1, 8), struct.pack("=Q", 1))
    assert is_same_file(message.fds[0], eventfds[0])
    assert not os.get_inheritable(message.fds[0])
    close_fds(message.fds)


def test_a_message_that_comes_byte_by_byte_is_put_together(pair: Pair, eventfds: list[int]) -> None:
    peer, ours = pair
    send(peer, KICK[:1], eventfds[:1])
    for i in range(1, len(KICK)):
        with pytest.raises(BlockingIOError):
            ours.receive()
        send(peer, KICK[i : i + 1], [])
    message = ours.receive()
    assert message is not None
    assert message.payload == KICK[12:]
    assert is_same_file(message.fds[0], eventfds[0])
    close_fds(message.fds)


def test_the_end_between_messages_is_none(pair: Pair) -> None:
    peer, ours = pair
    send(peer, FEATURES, [])
    peer.close()
    assert ours.receive() is not None
    assert ours.receive() is None
    assert ours.peek() is None


def test_the_end_inside_a_message_is_a_protocol_error(pair: Pair, eventfds: list[int]) -> None:
    peer, ours = pair
    before = open_fd_count()
    send(peer, KICK[:15], eventfds[:1])
    peer.close()
    with pytest.raises(ProtocolError, match="middle of a message"):
        ours.receive()
    assert open_fd_count() == before - 1  # the peer's end is closed


def test_a_huge_message_is_refused_before_it_is_read(pair: Pair, eventfds: list[int]) -> None:
    peer, ours = pair
    before = open_fd_count()
    send(peer, struct.pack("=III", 5, 1, 1 << 30), eventfds[:1])
    with pytest.raises(ProtocolError, match="announces 1073741824 bytes"):
        ours.receive()
    assert open_fd_count() == before


def test_more_fds_than_any_message_has_are_refused(pair: Pair, eventfds: list[int]) -> None:
    peer, ours = pair
    before = open_fd_count()
    send(peer, KICK, eventfds)
    with pytest.raises(ProtocolError, match="a message has more than 8 fds"):
        ours.receive()
    assert open_fd_count() == before


def test_fds_in_the_middle_of_a_message_count_too(pair: Pair, eventfds: list[int]) -> None:
    peer, ours = pair
    before = open_fd_count()
    send(peer, KICK[:6], eventfds[:6])
    send(peer, KICK[6:], eventfds[:6])
    with pytest.raises(ProtocolError, match="a message has more than 8 fds"):
        ours.receive()
    assert open_fd_count() == before


def test_a_peeked_message_stays_until_it_is_consumed(pair: Pair, eventfds: list[int]) -> None:
    peer, ours = pair
    table = MemoryTable((Region(0, 4096, 0, 0), Region(4096, 4096, 4096, 0)))
    send(peer, encode_message(Number.SET_MEM_TABLE, table), eventfds[:2])
    send(peer, FEATURES, [])
    first, second = ours.peek(), ours.peek()
    assert first is not None
    assert second is not None
    assert (first.header, first.payload) == (second.header, second.payload)
    assert is_same_file(first.fds[1], eventfds[1])
    assert is_same_file(second.fds[1], eventfds[1])
    close_fds(first.fds + second.fds)
    ours.consume()
    after = ours.peek()
    assert after is not None
    assert after.header.number == Number.SET_FEATURES
    ours.consume()
    with pytest.raises(BlockingIOError):
        ours.peek()


def test_peeking_does_not_take_the_fds_of_the_next_message(pair: Pair, eventfds: list[int]) -> None:
    peer, ours = pair
    send(peer, FEATURES, [])
    send(peer, KICK, eventfds[:1])
    first = ours.peek()
    assert first is not None
    assert first.fds == ()
    ours.consume()
    second = ours.peek()
    assert second is not None
    assert is_same_file(second.fds[0], eventfds[0])
    close_fds(second.fds)
    ours.consume()


def test_a_lost_fd_is_not_replaced_by_one_of_the_next_message(
    pair: Pair, eventfds: list[int]
) -> None:
    peer, ours = pair
    send(peer, KICK, [])
    send(peer, KICK, eventfds[:1])
    for count in (0, 1):
        message = ours.peek()
        assert message is not None
        assert len(message.fds) == count
        close_fds(message.fds)
        ours.consume()


@pytest.mark.parametrize("peeks", [True, False])
def test_fds_for_which_there_is_no_room_are_lost(
    pair: Pair, eventfds: list[int], peeks: bool
) -> None:
    """The message arrives without its fd, and later messages bring their fds once the process may
    open files again."""
    peer, ours = pair
    before = open_fd_count()
    send(peer, KICK, eventfds[:1])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        message = ours.peek() if peeks else ours.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert message is not None
    assert message.fds == ()
    ours.consume()
    assert open_fd_count() == before
    send(peer, KICK, eventfds[:1])
    again = ours.peek()
    assert again is not None
    assert is_same_file(again.fds[0], eventfds[0])
    close_fds(again.fds)


def test_peeking_at_a_part_of_a_message_receives_it(pair: Pair, eventfds: list[int]) -> None:
    peer, ours = pair
    send(peer, KICK[:13], eventfds[:1])
    with pytest.raises(BlockingIOError):
        ours.peek()
    send(peer, KICK[13:], [])
    message = ours.peek()
    assert message is not None
    assert is_same_file(message.fds[0], eventfds[0])
    close_fds(message.fds)
    ours.consume()
    with pytest.raises(BlockingIOError):
        ours.peek()


def test_both_ends_use_the_same_socket_class(pair: Pair, eventfds: list[int]) -> None:
    peer, ours = pair
    with socket.socket(fileno=os.dup(peer.fileno())) as duplicate:
        frontend = MessageSocket(duplicate)
        frontend.send(KICK, eventfds[:1])
        message = ours.receive()
        assert message is not None
        close_fds(message.fds)


Piece = tuple[bytes, int]
pieces = st.lists(
    st.tuples(
        st.one_of(
            st.binary(min_size=1, max_size=40),
            st.sampled_from([KICK, FEATURES, KICK[:12], FEATURES[12:], KICK + FEATURES]),
        ),
        st.integers(0, 10),
    ),
    max_size=6,
)


@given(pieces, st.booleans())
def test_no_stream_of_bytes_and_fds_leaks_or_raises_anything_else(
    stream: list[Piece], peeks: bool
) -> None:
    source = os.eventfd(0)
    before = open_fd_count()
    peer, end = socket.socketpair()
    end.setblocking(False)
    ours = MessageSocket(end)
    for data, count in stream:
        send(peer, data, [source] * count)
    peer.close()
    drain(ours, ours.peek if peeks else ours.receive)
    ours.close()
    assert open_fd_count() == before
    os.close(source)


def drain(ours: MessageSocket, take: Callable[[], RawMessage | None]) -> None:
    try:
        while (message := take()) is not None:
            close_fds(message.fds)
            ours.consume()
    except (ProtocolError, ConnectionResetError):
        return
