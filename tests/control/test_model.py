# SPDX-License-Identifier: Apache-2.0
"""What a client makes of answers, also of a daemon that is newer or was taken over."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.control.model import Counters, LogRecord, QueueCounters, decode
from vfsd.tool.top_load import loads, percentile
from vfsd.transport.errors import ProtocolError

LINE: dict[str, Any] = {"time": 1.5, "level": "info", "source": "", "text": "hello"}


def op(**fields: Any) -> dict[str, Any]:
    empty = {"op": "READ", "count": 0, "errors": 0, "bytes": 0, "ns": 0, "latency": [0] * 24}
    return empty | fields


def counters(ns: int, *ops: dict[str, Any]) -> Counters:
    return decode(Counters, {"ns": ns, "ops": list(ops), "queues": [], "workers": []})


def test_fields_that_are_not_known_are_ignored() -> None:
    assert decode(LogRecord, LINE | {"colour": "red"}) == LogRecord(**LINE)


@pytest.mark.parametrize("field", LINE)
def test_a_field_that_is_missing_is_refused(field: str) -> None:
    with pytest.raises(ProtocolError, match=f"no '{field}'"):
        decode(LogRecord, {name: value for name, value in LINE.items() if name != field})


@pytest.mark.parametrize(
    "wrong", [{"time": "now"}, {"text": 5}, {"level": None}, {"source": ["x"]}, {"time": True}]
)
def test_a_field_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        decode(LogRecord, LINE | wrong)


def test_a_number_may_be_an_integer_where_a_fraction_is_expected() -> None:
    assert decode(LogRecord, LINE | {"time": 2}).time == 2.0


def test_text_cannot_control_a_terminal() -> None:
    assert decode(LogRecord, LINE | {"text": "\033[2Jx\n"}).text == "\\x1b[2Jx\\n"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON, st.dictionaries(st.sampled_from(["ns", "ops", "queues", "workers"]), JSON))
def test_any_answer_is_decoded_or_refused(content: Any, fields: dict[str, Any]) -> None:
    for one in (content, fields):
        try:
            assert isinstance(decode(Counters, one), Counters)
        except ProtocolError:
            continue


def test_loads_are_differences() -> None:
    latency = [0] * 24
    latency[3], latency[10] = 98, 2
    before = counters(0, op(count=10, bytes=5, ns=100))
    after = counters(2_000_000_000, op(count=110, errors=4, bytes=2005, ns=5100, latency=latency))
    (load,) = loads(before, after).ops
    assert (load.rate, load.error_rate, load.bytes_per_second) == (50.0, 2.0, 1000.0)
    assert (load.mean_ns, load.p50_ns, load.p99_ns) == (50.0, 2048.0, 262144.0)


def test_counters_that_begin_again_are_of_another_sandbox() -> None:
    before = counters(0, op(count=1000, ns=10, latency=[1000] + [0] * 23))
    after = counters(1_000_000_000, op(count=7, ns=70, latency=[0, 7] + [0] * 22))
    (load,) = loads(before, after).ops
    assert (load.rate, load.mean_ns, load.p50_ns) == (7.0, 10.0, 512.0)


def test_an_operation_without_requests_has_no_times() -> None:
    same = op(count=3, latency=[3] + [0] * 23)
    (load,) = loads(counters(0, same), counters(1_000_000_000, same)).ops
    assert (load.rate, load.mean_ns, load.p50_ns, load.p99_ns) == (0.0, None, None, None)


def test_the_operation_that_took_most_time_is_the_first() -> None:
    slow = op(op="FSYNC", count=1, ns=1_000_000)
    fast = op(op="GETATTR", count=100, ns=100_000)
    found = loads(counters(0), counters(1_000_000_000, fast, slow))
    assert [load.op for load in found.ops] == ["FSYNC", "GETATTR"]


def test_queues_keep_their_sum_of_bad_chains() -> None:
    row = dict.fromkeys(("requests", "batches", "calls", "kicks"), 8) | {"bad_chains": 5}
    queue = QueueCounters(index=1, slot=0, **row)
    before = Counters(ns=0, ops=[], queues=[], workers=[])
    after = Counters(ns=4_000_000_000, ops=[], queues=[queue], workers=[])
    (load,) = loads(before, after).queues
    assert (load.requests, load.bad_chains) == (2.0, 5)


@given(st.lists(st.integers(0, 1000), min_size=24, max_size=24), st.sampled_from([0.5, 0.99]))
def test_a_percentile_has_that_part_below_it(latency: list[int], part: float) -> None:
    found = percentile(latency, part)
    if not sum(latency):
        assert found is None
        return
    assert found is not None
    below = sum(n for i, n in enumerate(latency) if 256 << i <= found)
    assert below >= part * sum(latency)
