# SPDX-License-Identifier: Apache-2.0
"""How many log lines are let through, whatever their text is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.transport.rate_limit import (
    BYTES,
    KINDS,
    LINE_OVERHEAD,
    LINES,
    Bucket,
    LineLimit,
    Rate,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limit_of(clock: Clock) -> LineLimit:
    return LineLimit(LINES, [Bucket(BYTES)], clock)


def test_a_bucket_lets_a_burst_through_and_a_rate_after_it() -> None:
    bucket = Bucket(Rate(burst=3, per_second=0.5))
    assert [bucket.take(1, 100.0) for _ in range(5)] == [True, True, True, False, False]
    assert [bucket.take(1, 102.0) for _ in range(2)] == [True, False]
    assert [bucket.seconds_until(1, at) for at in (102.0, 103.0, 104.0)] == [2.0, 1.0, 0.0]
    assert [bucket.take(1, 1e9) for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    bucket = Bucket(Rate(burst=1, per_second=1))
    assert bucket.take(1, 100.0)
    assert not bucket.take(1, 100.0)
    assert not bucket.take(1, 50.0)


def test_lines_of_one_kind_are_counted_when_they_are_left_out(clock: Clock) -> None:
    limit = limit_of(clock)
    texts = [limit.admit("info", f"queue {n} of 'file{n}' at 0x{n:x}: broken") for n in range(1000)]
    assert len([text for text in texts if text]) == LINES.burst
    assert limit.admit("warn", "queue 1 of 'x' at 0x1: broken")  # another level: another kind
    assert limit.admit("info", "something else")
    clock.now += 61
    expected = f"queue 7 of '' at 0x7: broken ({1000 - LINES.burst:.0f} lines like this were left"
    assert limit.admit("info", "queue 7 of '' at 0x7: broken") == f"{expected} out)"
    clock.now += 3600
    assert limit.admit("info", "queue 7 of '' at 0x7: broken") == "queue 7 of '' at 0x7: broken"


def test_a_source_that_makes_up_kinds_has_a_limit_in_bytes(clock: Clock) -> None:
    limit = limit_of(clock)
    admitted = 0
    for minute in range(20):
        clock.now = 1000.0 + 60 * minute
        for number in range(500):
            word = "".join(chr(97 + int(digit)) for digit in f"{minute:02}{number:04}")
            if text := limit.admit("error", word + "x" * 300):
                admitted += len(text) + LINE_OVERHEAD
    assert admitted <= BYTES.burst + 1200 * BYTES.per_second
    assert len(vars(limit)["_kinds"]) <= KINDS


def test_nothing_that_was_left_out_is_forgotten(clock: Clock) -> None:
    limit = limit_of(clock)
    reported = admitted = 0
    for number in range(5000):
        clock.now += 0.1
        word = "".join(chr(97 + int(digit)) for digit in str(number % (KINDS + 20)))
        if text := limit.admit("error", word):
            admitted += 1
            found = re.search(r"\((\d+) lines", text)
            reported += int(found[1]) if found else 0
    assert admitted + reported + limit.take_left_out() == 5000
    assert limit.take_left_out() == 0


def test_sources_share_a_bucket(clock: Clock) -> None:
    shared = Bucket(BYTES)
    limits = [LineLimit(LINES, [Bucket(BYTES), shared], clock) for _ in range(64)]
    admitted = [
        text
        for limit in limits
        for number in range(100)
        if (text := limit.admit("info", chr(97 + number % 26) * 8 + "y" * 200))
    ]
    assert sum(len(text) + LINE_OVERHEAD for text in admitted) <= BYTES.burst


@given(st.lists(st.tuples(st.floats(0, 100), st.text(max_size=80)), max_size=200))
def test_any_lines_at_any_time(lines: list[tuple[float, str]]) -> None:
    clock = Clock()
    start = clock.now
    limit = limit_of(clock)
    size = 0
    for pause, text in lines:
        clock.now += pause
        if limit.admit("info", text) is not None:
            size += len(text) + LINE_OVERHEAD
    assert size <= BYTES.burst + BYTES.per_second * (clock.now - start) + 1
