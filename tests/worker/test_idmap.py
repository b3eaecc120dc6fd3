# SPDX-License-Identifier: Apache-2.0
"""The table of ids that workers use gives the same ids as the Python code that parses the rules."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.worker.pool_process import FS
from vfsd.transport import idmap
from vfsd.transport.job import Filesystem
from vfsd.transport.native import ffi, lib
from vfsd.worker import policy
from vfsd.worker.handles import Outcome

IDS = st.integers(0, idmap.NO_ID)
KINDS = ("guest", "host", "map", "squash-guest", "squash-host", "forbid-guest")


@st.composite
def disjoint_rules(draw: st.DrawFn) -> list[str]:
    """Rules in any order. No two of their ranges overlap, on the guest's or on the host's side."""
    top = draw(st.sampled_from([40, 5000, idmap.NO_ID]))
    cuts = sorted(draw(st.sets(st.integers(0, top), max_size=60)))
    rules = []
    for first, end in zip(cuts[::2], cuts[1::2], strict=False):
        kind = draw(st.sampled_from(KINDS))
        count = draw(st.integers(1, end - first))
        # A "map" rule here has the same ids in the guest and on the host, so that the host ids of
        # two such rules are as disjoint as their guest ids.
        to = first if kind == "map" else draw(st.integers(0, idmap.NO_ID - count))
        middle = "" if kind == "forbid-guest" else f":{to}"
        rules.append(f"{kind}:{first}{middle}:{count}")
    return draw(st.permutations(rules))


def tables(rules: list[str]) -> Any:
    struct: Any = ffi.new("struct fs_policy *")
    fs = replace(Filesystem(**FS), translate_uid=tuple(rules), translate_gid=())
    policy.fill(struct, fs, Outcome.FDS)
    return struct


@given(disjoint_rules(), st.lists(IDS, max_size=20))
def test_the_table_says_what_the_language_says(rules: list[str], ids: list[int]) -> None:
    struct, maps = tables(rules), idmap.combine(rules)
    edges = {
        e for r in maps.to_host + maps.to_guest for e in (r.first - 1, r.first, r.last, r.last + 1)
    }
    for one in {*ids, *edges, 0, idmap.NO_ID - 1, idmap.NO_ID} - {-1}:
        for table, ranges in (
            (struct.uids.to_host, maps.to_host), (struct.uids.to_guest, maps.to_guest),
        ):  # fmt: skip
            got = lib.idmap_translate(ffi.addressof(table), one)
            assert got == idmap.translate(ranges, one)
        assert lib.idmap_translate(ffi.addressof(struct.gids.to_host), one) == one


def test_as_many_ranges_as_there_may_be() -> None:
    assert idmap.MAX_RANGES == lib.IDMAP_RANGES_MAX
    rules = [f"map:{2 * i}:{2 * i + 1}:1" for i in range(idmap.MAX_RANGES)]
    table = tables(rules).uids.to_host
    for one in range(2 * idmap.MAX_RANGES + 2):
        expected = one + 1 if one % 2 == 0 and one < 2 * idmap.MAX_RANGES else one
        assert lib.idmap_translate(ffi.addressof(table), one) == expected
