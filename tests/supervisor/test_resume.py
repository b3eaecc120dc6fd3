# SPDX-License-Identifier: Apache-2.0
"""What one supervisor leaves to the next."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.supervisor.resume import HALF, StateFile, open_fds, sweep


@pytest.fixture
def state() -> Iterator[StateFile]:
    file = StateFile.create()
    yield file
    os.close(file.fd)


def test_a_new_file_holds_nothing(state: StateFile) -> None:
    assert state.load() is None


def test_the_state_saved_last_is_loaded_by_another(state: StateFile) -> None:
    for number in range(5):
        state.save({"number": number})
        assert StateFile(state.fd).load() == {"layout": 1, "number": number}


def test_a_successor_goes_on_counting(state: StateFile) -> None:
    state.save({"number": 1})
    StateFile(state.fd).save({"number": 2})
    assert state.load() == {"layout": 1, "number": 2}


@given(st.integers(0, 40), st.binary(min_size=1, max_size=30))
def test_a_half_written_state_is_passed_over(offset: int, garbage: bytes) -> None:
    fd = StateFile.create().fd
    state = StateFile(fd)
    state.save({"number": 1})
    state.save({"number": 2})
    size = 16 + len('{"layout":1,"number":2}')
    written = os.pread(fd, size, 0)  # the half where number 2 is
    os.pwrite(fd, garbage, offset)
    loaded = StateFile(fd).load()
    is_intact = os.pread(fd, size, 0) == written
    os.close(fd)
    assert loaded == {"layout": 1, "number": 2 if is_intact else 1}


def test_a_state_that_does_not_fit_is_refused(state: StateFile) -> None:
    state.save({"number": 1})
    with pytest.raises(ValueError, match="a state of"):
        state.save({"text": "x" * HALF})
    assert state.load() == {"layout": 1, "number": 1}


def test_sweep_closes_what_nobody_mentions() -> None:
    before = open_fds()
    kept, orphan = os.eventfd(0), os.eventfd(0)
    assert sweep(before | {kept}) == [orphan]
    assert open_fds() == before | {kept}
    os.close(kept)
