# SPDX-License-Identifier: Apache-2.0
"""The language of --translate-uid and --translate-gid: which host id stands for an id of the guest.

    guest:G:H:n         guest ids from G on are host ids from H on, n of them
    host:H:G:n          host ids from H on are shown to the guest as ids from G on
    map:G:H:n           both
    squash-guest:G:H:n  n guest ids from G on are all the host id H
    squash-host:H:G:n   n host ids from H on are all shown as G
    forbid-guest:G:n    n guest ids from G on may not be used

As in the Rust virtiofsd, the kind may be written in upper or lower case, every character but a
letter, a digit, "-" and "_" may separate in the place of ":", and a rule with n = 0 applies to no
id.

The two directions are independent maps. In each of them no two rules may apply to the same id, and
an id to which no rule applies is unchanged. Pure: text in, ranges out. The supervisor checks the
operator's text with this module; a worker makes its table from the same text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Final

NO_ID: Final = 0xFFFFFFFF  # (uid_t)-1, which is not an id
MAX_RANGES: Final = 256  # rules in one direction: IDMAP_RANGES_MAX of idmap.h


@dataclass(frozen=True, order=True)
class Range:
    """The ids first..last become to + (id - first) * step. With to = NO_ID and step = 0 they are
    forbidden."""

    first: int
    last: int
    to: int
    step: int
    rule: str  # as the operator wrote it


@dataclass(frozen=True)
class Maps:
    """The rules of one kind of ids, each direction in ascending order."""

    to_host: tuple[Range, ...] = ()
    to_guest: tuple[Range, ...] = ()


# The effect of a rule in each direction: (from, to, step) as indexes into the numbers of the rule.
# None: the rule has no effect in this direction.
_SHIFT, _BACK, _SQUASH = (0, 1, 1), (1, 0, 1), (0, 1, 0)
_KINDS: Final[dict[str, tuple[tuple[int, int, int] | None, tuple[int, int, int] | None]]] = {
    "guest": (_SHIFT, None),
    "host": (None, _SHIFT),
    "map": (_SHIFT, _BACK),
    "squash-guest": (_SQUASH, None),
    "squash-host": (None, _SQUASH),
}
_FORBID: Final = "forbid-guest"
_FORMS: Final = {kind: f"{kind}:FROM:TO:COUNT" for kind in _KINDS} | {
    _FORBID: f"{_FORBID}:FROM:COUNT"
}


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 10 or int(text) > NO_ID:
        raise ValueError(f"has '{text}', which is not a number of 32 bits")
    return int(text)


def _range(rule: str, first: int, to: int, step: int, count: int) -> Range:
    if first + count > NO_ID or to + (count - 1) * step >= NO_ID:
        raise ValueError(f"goes beyond {NO_ID - 1}, the largest id")
    return Range(first, first + count - 1, to, step, rule)


def _read(rule: str) -> tuple[str, list[int]]:
    word = "".join(takewhile(lambda c: c.isalnum() or c in "-_", rule))
    kind, separator, rest = word.lower(), rule[len(word) :][:1], rule[len(word) + 1 :]
    if kind not in _FORMS:
        raise ValueError(f"does not begin with one of {', '.join(_FORMS)}")
    texts = rest.split(separator) if separator else []
    if len(texts) != _FORMS[kind].count(":"):
        raise ValueError(f"is not {_FORMS[kind]}")
    return kind, [_number(text) for text in texts]


def parse(rule: str) -> Maps:
    """The effect of one rule. The text of a ValueError completes the sentence "'rule' …"."""
    kind, numbers = _read(rule)
    count = numbers[-1]
    if count == 0:
        return Maps()
    if kind == _FORBID:
        _range(rule, numbers[0], 0, 0, count)
        return Maps((Range(numbers[0], numbers[0] + count - 1, NO_ID, 0, rule),))
    directions = [
        () if how is None else (_range(rule, numbers[how[0]], numbers[how[1]], how[2], count),)
        for how in _KINDS[kind]
    ]
    return Maps(*directions)


def combine(rules: Sequence[str]) -> Maps:
    """All rules for one kind of ids. ValueError names, in one line, two rules that contradict each
    other."""
    maps = [parse(rule) for rule in rules]
    return Maps(
        _sorted((r for m in maps for r in m.to_host), "guest"),
        _sorted((r for m in maps for r in m.to_guest), "host"),
    )


def _sorted(ranges: Iterator[Range], side: str) -> tuple[Range, ...]:
    ordered = sorted(ranges)
    if len(ordered) > MAX_RANGES:
        raise ValueError(
            f"there are {len(ordered)} ranges of {side} ids; at most {MAX_RANGES} are possible"
        )
    for one, other in pairwise(ordered):
        if other.first <= one.last:
            raise ValueError(
                f"'{one.rule}' and '{other.rule}' overlap: both apply to {side} id"
                f" {other.first}; make the ranges disjoint"
            )
    return tuple(ordered)


def translate(ranges: Sequence[Range], id_: int) -> int:
    """The id that `id_` becomes; NO_ID if it is forbidden. (The workers' C does this per
    request.)"""
    for r in ranges:
        if r.first <= id_ <= r.last:
            return r.to + (id_ - r.first) * r.step
    return id_
