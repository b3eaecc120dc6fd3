# SPDX-License-Identifier: Apache-2.0
"""Messages that come out of the sandbox are checked."""

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
    decode_object,
    decode_pool_event,
    decode_refusal,
    decode_spawned,
    decode_worker_event,
)
from vfsd.transport.errors import ProtocolError

VRINGS = 17
SLOTS = 16


def test_an_acknowledgement_says_where_each_vring_is() -> None:
    vrings = {"1": {"last_avail": 17, "error": None}, "12": {"last_avail": 0, "error": "no"}}
    content = {"id": 1, "generation": 4, "vrings": vrings}
    assert decode_adopted(content, 4, VRINGS) == Adopted(4, {1: 17, 12: 0}, {12: "no"})


@pytest.mark.parametrize(
    ("generation", "vrings"),
    [
        (2, {}),  # an older generation
        (True, {}),
        (4.0, {}),
        (1 << 32, {}),
        (4, []),
        (4, {str(VRINGS): {"last_avail": 0}}),
        (4, {"-1": {"last_avail": 0}}),
        (4, {"01": {"last_avail": 0}}),
        (4, {"²": {"last_avail": 0}}),
        (4, {"1": {"last_avail": 1 << 16}}),
        (4, {"1": {"last_avail": False}}),
        (4, {"1": {"last_avail": 0, "error": 7}}),
        (4, {"1": 0}),
    ],
)
def test_an_acknowledgement_of_something_else_is_none(generation: object, vrings: object) -> None:
    with pytest.raises(ProtocolError):
        decode_adopted({"id": 1, "generation": generation, "vrings": vrings}, 4, VRINGS)


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
    assert decode_worker_event(content, VRINGS) == event


@pytest.mark.parametrize(
    ("content", "event"),
    [
        ({"event": "ready"}, PoolReady(False)),
        ({"event": "ready", "opens_handles": True}, PoolReady(True)),
        ({"event": "ready", "opens_handles": 1}, PoolReady(False)),
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
    assert decode_pool_event(content, SLOTS) == event


@pytest.mark.parametrize(
    "content",
    [
        {"event": "ring-broken", "vring": VRINGS, "reason": "why"},
        {"event": "ring-broken", "vring": True, "reason": "why"},
        {"event": "ring-broken", "vring": 1},
        {"event": "hello", "pid": 1 << 23},
        {"event": ["hello"], "pid": 1},
        {"log": ["x"], "level": "info"},
        {"log": "x", "level": ["info"]},
        {"log": "x", "level": "off"},
    ],
)
def test_no_events_of_workers(content: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        decode_worker_event(content, VRINGS)


@pytest.mark.parametrize(
    "content",
    [
        {"event": "worker-died", "slot": SLOTS, "status": 3},
        {"event": "worker-died", "slot": 0, "status": 256},
        {"event": "worker-died", "slot": 0, "signal": "9"},
        {"event": "worker-died", "slot": 0},
        {"event": "failed", "error": 3},
        {"event": "hello", "pid": 3},
    ],
)
def test_no_events_of_the_pool(content: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        decode_pool_event(content, SLOTS)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":' + b"[" * 30000,
        '{"a":1}'.encode("utf-16"),
        b'{"a":"\xff"}',
        b"[]",
        b"",
    ],
)
def test_what_is_no_object_in_utf_8_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_object(data)


def test_text_can_be_written_to_a_log() -> None:
    content = decode_object(rb'{"log":"\ud800\u0000\u001b[31m\u2028","level":"info"}')
    assert decode_worker_event(content, VRINGS) == LogLine("info", r"\ud800\x00\x1b[31m\u2028")
    event = decode_worker_event({"log": "\0" * MAX_TEXT, "level": "info"}, VRINGS)
    assert isinstance(event, LogLine)
    assert len(event.text) == MAX_TEXT


def test_fd_numbers_are_numbers_and_as_many_as_asked_for() -> None:
    assert decode_fd_numbers({"fds": [3, 4]}, 2) == (3, 4)
    for fds in ([3], [3, -1], [3, "4"], [3, True], None, [3, 1 << 40], [3, 3]):
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
        lambda: decode_adopted(content, 4, VRINGS),
        lambda: decode_worker_event(content, VRINGS),
        lambda: decode_pool_event(content, SLOTS),
        lambda: decode_fd_numbers(content, 1),
        lambda: decode_spawned(content),
        lambda: decode_refusal(content),
    ]
    for decode in decoders:
        try:
            decode()
        except ProtocolError as error:
            assert str(error)  # noqa: PT017
