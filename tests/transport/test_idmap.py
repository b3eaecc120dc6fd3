# SPDX-License-Identifier: Apache-2.0
"""The language of --translate-uid and --translate-gid."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.transport.idmap import MAX_RANGES, NO_ID, combine, parse, translate


@pytest.mark.parametrize(
    ("rule", "guest", "host"),
    [
        # Column 2: the host's ids of guest ids 9, 10, 12, 13.
        # Column 3: the guest's ids of host ids 99, 100, 102, 103.
        ("guest:10:100:3", [9, 100, 102, 13], [99, 100, 102, 103]),
        ("host:100:10:3", [9, 10, 12, 13], [99, 10, 12, 103]),
        ("map:10:100:3", [9, 100, 102, 13], [99, 10, 12, 103]),
        ("squash-guest:10:100:3", [9, 100, 100, 13], [99, 100, 102, 103]),
        ("squash-host:100:10:3", [9, 10, 12, 13], [99, 10, 10, 103]),
        ("forbid-guest:10:3", [9, NO_ID, NO_ID, 13], [99, 100, 102, 103]),
    ],
)
def test_each_kind_of_rule(rule: str, guest: list[int], host: list[int]) -> None:
    maps = parse(rule)
    assert [translate(maps.to_host, one) for one in (9, 10, 12, 13)] == guest
    assert [translate(maps.to_guest, one) for one in (99, 100, 102, 103)] == host


@pytest.mark.parametrize(
    "rule", ["map,10,100,3", "map;10;100;3", "map 10 100 3", "map/10/100/3", "MAP:10:100:3"]
)
def test_any_character_that_belongs_to_no_word_separates(rule: str) -> None:
    wanted = parse("map:10:100:3")
    for found, other in ((parse(rule), wanted), (combine([rule]), combine(["map:10:100:3"]))):
        assert [(r.first, r.last, r.to) for r in (*found.to_host, *found.to_guest)] == [
            (r.first, r.last, r.to) for r in (*other.to_host, *other.to_guest)
        ]


@pytest.mark.parametrize("kind", ["guest", "host", "map", "squash-guest", "squash-host"])
def test_a_rule_about_no_id_says_nothing(kind: str) -> None:
    """Incus writes a rule for each gap between ranges, also for a gap of no ids."""
    rules = ["map:0:1000:5", "map:5:2000:5", f"{kind}:3:4294967295:0", f"{kind}:4294967295:3:0"]
    assert combine([*rules, "forbid-guest:0:0", "forbid-guest:5:0"]) == combine(rules[:2])


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("", "does not begin with one of guest, host, map, squash-guest, squash-host, forbid"),
        ("guests:1:2:3", "does not begin with one of"),
        ("guest:1:2", "is not guest:FROM:TO:COUNT"),
        ("guest:1:2:3:", "is not guest:FROM:TO:COUNT"),
        ("forbid-guest:1:2:3", "is not forbid-guest:FROM:COUNT"),
        ("map:1:x:3", "has 'x', which is not a number of 32 bits"),
        ("map:1::3", "has '', which is not a number"),
        ("map:-1:2:3", "has '-1', which is not a number"),
        ("map:1:2:٣", "has '٣', which is not a number"),
        ("map:1:2:0x3", "has '0x3', which is not a number"),
        ("map:4294967296:0:1", "has '4294967296', which is not a number of 32 bits"),
        ("map:00000000000000000001:0:1", "which is not a number of 32 bits"),
        ("map,1,2:3", "is not map:FROM:TO:COUNT"),
        ("map;1;2;3;", "is not map:FROM:TO:COUNT"),
        ("map_1_2_3", "does not begin with one of"),
        ("map:4294967295:0:1", "goes beyond 4294967294, the largest id"),
        ("map:0:4294967295:1", "goes beyond 4294967294"),
        ("guest:1:0:4294967295", "goes beyond 4294967294"),
        ("guest:0:1:4294967295", "goes beyond 4294967294"),
        ("squash-guest:0:4294967295:1", "goes beyond 4294967294"),
        ("forbid-guest:2:4294967294", "goes beyond 4294967294"),
    ],
)
def test_each_mistake_has_its_own_message(rule: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(rule)


@pytest.mark.parametrize(
    "rule", ["squash-guest:0:0:4294967295", "map:0:0:4294967295", "squash-host:0:4294967294:9"]
)
def test_every_id_there_is_can_be_meant(rule: str) -> None:
    maps = parse(rule)
    for one in (0, 1, NO_ID - 1):
        assert translate(maps.to_host, one) != NO_ID
        assert translate(maps.to_guest, one) != NO_ID
    assert translate(maps.to_host, NO_ID) == NO_ID


@pytest.mark.parametrize(
    ("rules", "side", "one"),
    [
        (["map:0:1000:10", "guest:9:5:1"], "guest", 9),
        (["guest:5:7:1", "forbid-guest:0:100"], "guest", 5),
        (["host:5:7:1", "map:0:5:1"], "host", 5),
        (["squash-guest:3:1:2", "guest:100:200:5", "squash-guest:4:1:2"], "guest", 4),
        (["map:1:1:1", "map:1:1:1"], "guest", 1),
    ],
)
def test_two_rules_about_one_id_are_both_named(rules: list[str], side: str, one: int) -> None:
    with pytest.raises(ValueError, match="overlap") as caught:
        combine(rules)
    text = str(caught.value)
    assert f"'{rules[0]}'" in text
    assert f"'{rules[-1]}'" in text
    assert f"both apply to {side} id {one}" in text


def test_the_two_directions_do_not_meddle() -> None:
    maps = combine(["guest:0:1000:10", "host:0:1000:10", "squash-guest:10:7:10", "map:30:10:5"])
    assert [translate(maps.to_host, one) for one in (0, 9, 10, 19, 30)] == [1000, 1009, 7, 7, 10]
    assert [translate(maps.to_guest, one) for one in (0, 9, 10, 14, 15)] == [1000, 1009, 30, 34, 15]


def test_too_many_ranges_are_refused() -> None:
    rules = [f"guest:{i}:0:1" for i in range(MAX_RANGES + 1)]
    assert len(combine(rules[:-1]).to_host) == MAX_RANGES
    with pytest.raises(ValueError, match=f"{MAX_RANGES + 1} ranges of guest ids; at most"):
        combine(rules)


@given(st.lists(st.text(alphabet="guesthomapfrbidq-:0123456789\0\n", max_size=30), max_size=4))
def test_any_text_is_rules_or_a_mistake(rules: list[str]) -> None:
    with contextlib.suppress(ValueError):
        combine(rules)
