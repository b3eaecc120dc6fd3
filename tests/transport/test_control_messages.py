# SPDX-License-Identifier: Apache-2.0
"""What comes out of the sandbox is checked."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.transport.control_messages import (
    MAX_TEXT,
    Adopted,
    Hello,
    LogLine,
    PoolFailed,
    PoolLog,
    PoolReady,
    RingBroken,
    WorkerDied,
    decode_adopted,
    decode_fd_numbers,
    decode_pool_event,
    decode_worker_event,
)
from vfsd.transport.errors import ProtocolError


def test_an_acknowledgement_says_where_each_vring_is() -> None:
    vrings = {"1": {"last_avail": 17, "error": None}, "12": {"last_avail": 0, "error": "no"}}
    assert decode_adopted({"id": 1, "generation": 4, "vrings": vrings}) == Adopted(
        4, {1: 17, 12: 0}, {12: "no"}
    )


@pytest.mark.parametrize(
    ("content", "event"),
    [
        ({"log": "text", "level": "warn"}, LogLine("warn", "text")),
        ({"log": "a\nb\x1b[31m", "level": "info"}, LogLine("info", "a\\nb\\x1b[31m")),
        ({"log": "x" * 9999, "level": "info"}, LogLine("info", "x" * MAX_TEXT)),
        ({"event": "ring-broken", "vring": 2, "reason": "why"}, RingBroken(2, "why")),
        ({"event": "hello", "pid": 5}, Hello(5)),
    ],
)
def test_events_of_workers(content: dict[str, Any], event: object) -> None:
    assert decode_worker_event(content) == event


@pytest.mark.parametrize(
    ("content", "event"),
    [
        ({"event": "ready"}, PoolReady()),
        ({"event": "failed", "error": "why"}, PoolFailed("why")),
        (
            {"event": "worker-died", "slot": 3, "signal": 9, "respawned": True},
            WorkerDied(3, "signal 9", True),
        ),
        (
            {"event": "worker-died", "slot": 0, "status": 3, "respawned": False},
            WorkerDied(0, "status 3", False),
        ),
        ({"log": "text", "level": "error"}, PoolLog("error", "text")),
    ],
)
def test_events_of_the_pool(content: dict[str, Any], event: object) -> None:
    assert decode_pool_event(content) == event


def test_fd_numbers_are_numbers_and_as_many_as_asked_for() -> None:
    assert decode_fd_numbers({"fds": [3, 4]}, 2) == (3, 4)
    for fds in ([3], [3, -1], [3, "4"], [3, True], None, [3, 1 << 40]):
        with pytest.raises(ProtocolError):
            decode_fd_numbers({"fds": fds}, 2)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
words = ["event", "log", "level", "vring", "pid", "vrings", "generation", "slot", "error", "fds"]
contents = st.dictionaries(
    st.sampled_from(words),
    json_values
    | st.sampled_from(["ready", "failed", "worker-died", "ring-broken", "hello", "info"]),
)


@given(contents)
def test_any_object_is_decoded_or_a_protocol_error(content: dict[str, Any]) -> None:
    decoders: list[Callable[[], object]] = [
        lambda: decode_adopted(content),
        lambda: decode_worker_event(content),
        lambda: decode_pool_event(content),
        lambda: decode_fd_numbers(content, 1),
    ]
    for decode in decoders:
        try:
            decode()
        except ProtocolError as error:
            assert str(error)  # noqa: PT017
