# SPDX-License-Identifier: Apache-2.0
"""The state that a supervisor that dies leaves to the next one."""

import json
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.supervisor.effects import Apply, Close, Reply
from vfsd.supervisor.resume import (
    CONSUMED,
    HALF,
    LAYOUT,
    OUTBOX_BYTES,
    REPLIED,
    Outbox,
    StateFile,
    open_fds,
    sweep,
)
from vfsd.supervisor.saved_state import LostPool, SavedMessage, SavedPool, SavedState
from vfsd.supervisor.segments import Segments


def numbered(number: int) -> SavedState:
    return SavedState(reply_start=number)


@pytest.fixture
def state() -> Iterator[StateFile]:
    file = StateFile.create()
    yield file
    os.close(file.fd)


def test_a_new_file_holds_nothing(state: StateFile) -> None:
    assert state.load() == (SavedState(), 0)


def test_the_state_saved_last_is_loaded_by_another(state: StateFile) -> None:
    for number in range(5):
        state.save(numbered(number))
        assert StateFile(state.fd).load() == (numbered(number), 0)


def test_all_that_is_saved_is_loaded(state: StateFile) -> None:
    pool = SavedPool(
        channel=3, stderr=4, pid=1000, pidfd=5, segments=Segments(6, 7, 8, 9, 10),
        listeners=(("/run/worker-0", 11),), opens_handles=True, numbers={12: 7},
        spawned=frozenset({0}), ended=frozenset({1}),
    )  # fmt: skip
    lost = LostPool(Segments(6, 15, 16, 17, 18), frozenset({0, 2}), frozenset({2}))
    saved = SavedState(
        reply_start=8, frontend=13, has_spoken=True, ended=0, session={"tag": "a", "memory": []},
        pool=pool, lost=lost, effects=(Reply(b"\0\xff"), Close((14,)), Apply()),
        message=SavedMessage(5, 1, b"\xfe"),
    )  # fmt: skip
    state.save(saved)
    assert StateFile(state.fd).load() == (saved, 0)
    assert pool.fds() == set(range(3, 12))


def test_progress_belongs_to_one_state(state: StateFile) -> None:
    state.save(numbered(1))
    state.mark(CONSUMED)
    assert StateFile(state.fd).load() == (numbered(1), CONSUMED)
    state.mark(REPLIED)
    assert StateFile(state.fd).load() == (numbered(1), REPLIED)
    state.save(numbered(2))
    assert StateFile(state.fd).load() == (numbered(2), 0)


def test_a_successor_goes_on_counting(state: StateFile) -> None:
    """Each successor begins with the keeper's StateFile object, which no supervisor has changed."""
    for number in (1, 2, 3):
        state.save(numbered(number))
    for number in (4, 5, 6, 7):
        successor = StateFile(state.fd)
        assert successor.load() == (numbered(number - 1), 0)
        successor.save(numbered(number))


def test_no_generation_comes_twice(state: StateFile) -> None:
    seen = [state.next_generation() for _ in range(3)]
    seen += [StateFile(state.fd).next_generation() for _ in range(3)]
    state.save(numbered(1))
    seen.append(state.next_generation())
    assert seen == [2, 4, 6, 8, 10, 12, 14]


@given(st.integers(0, 40), st.binary(min_size=1, max_size=30))
def test_a_half_written_state_is_passed_over(offset: int, garbage: bytes) -> None:
    fd = StateFile.create().fd
    state = StateFile(fd)
    state.save(numbered(1))
    state.save(numbered(2))
    size = 16 + len(json.dumps([LAYOUT, numbered(2).encode()], separators=(",", ":")))
    written = os.pread(fd, size, 0)  # the half of the file with number 2
    os.pwrite(fd, garbage, offset)
    loaded = StateFile(fd).load()
    is_intact = os.pread(fd, size, 0) == written
    os.close(fd)
    assert loaded == (numbered(2 if is_intact else 1), 0)


def test_a_state_that_does_not_fit_is_refused(state: StateFile) -> None:
    state.save(numbered(1))
    with pytest.raises(ValueError, match="the state has 2097"):
        state.save(SavedState(effects=(Reply(bytes(HALF)),)))
    assert state.load() == (numbered(1), 0)


def test_a_reply_is_sent_once_whoever_sends_it() -> None:
    outbox = Outbox.create()
    ours, peer = socket.socketpair()
    with ours, peer:
        for number in range(3 * OUTBOX_BYTES // 1000):
            reply = bytes([number % 256]) * 1000
            start = outbox.start()
            outbox.send(ours, reply, start)
            Outbox(outbox.fd).send(ours, reply, start)  # a successor: the reply is sent already
            assert peer.recv(2000) == reply
    os.close(outbox.fd)


def test_the_rest_of_a_reply_is_sent_by_the_successor() -> None:
    outbox = Outbox.create()
    ours, peer = socket.socketpair()
    with ours, peer:
        os.lseek(outbox.fd, 7, os.SEEK_SET)  # seven bytes of the reply have been sent
        outbox.send(ours, b"0123456789", 0)
        assert peer.recv(100) == b"789"
    os.close(outbox.fd)


def test_replies_that_nobody_read_yet_stay_as_they_were() -> None:
    outbox = Outbox.create()
    ours, peer = socket.socketpair()
    with ours, peer:
        for number in range(50):
            outbox.send(ours, bytes([number]) * 20, outbox.start())
        assert [peer.recv(20) for _ in range(50)] == [bytes([n]) * 20 for n in range(50)]
    os.close(outbox.fd)


def test_sweep_closes_what_nobody_mentions() -> None:
    before = open_fds()
    kept, orphan = os.eventfd(0), os.eventfd(0)
    assert sweep(before | {kept}) == [orphan]
    assert open_fds() == before | {kept}
    os.close(kept)
