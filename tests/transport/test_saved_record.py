# SPDX-License-Identifier: Apache-2.0
"""A record that is saved whole or not at all, wherever the process dies during a save."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.transport.saved_record import SavedRecord

HALF = 256


def test_the_content_saved_last_is_loaded_by_another() -> None:
    memory = bytearray(2 * HALF)
    assert SavedRecord(memory, HALF).load() is None
    record = SavedRecord(memory, HALF)
    for number in range(5):
        record = SavedRecord(memory, HALF)
        record.load()
        record.save({"number": number})
        assert SavedRecord(memory, HALF).load() == {"number": number}
    assert record.sequence == 5


@given(st.integers(0, 60))
def test_a_save_that_a_death_cut_short_leaves_the_content_before(written: int) -> None:
    memory = bytearray(2 * HALF)
    record = SavedRecord(memory, HALF)
    record.save("before")
    record.save("x" * 40)
    after = bytearray(memory)
    record.save("y" * 40)  # in the half of "before"
    begin = record.sequence % 2 * HALF
    after[begin : begin + written] = memory[begin : begin + written]
    found = SavedRecord(after, HALF).load()
    assert found == ("y" * 40 if after == memory else "x" * 40)


def test_content_that_does_not_fit_is_refused() -> None:
    record = SavedRecord(bytearray(2 * HALF), HALF)
    record.save("kept")
    with pytest.raises(ValueError, match="the state has 302 bytes; expected at most 240"):
        record.save("x" * 300)
    assert record.load() == "kept"
