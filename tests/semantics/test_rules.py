# SPDX-License-Identifier: Apache-2.0
"""Every rule, on the bare host and on the share."""

from functools import cache

import pytest

from . import (
    rules_attributes,
    rules_create,
    rules_data,
    rules_locks,
    rules_set_id,
    rules_xattrs,
)
from .conftest import (
    ALWAYS,
    FOUR_QUEUES,
    NEVER,
    NO_IDMAPPED,
    NO_KILLPRIV,
    ONE_QUEUE,
    PLAIN,
    USERNS,
    WRITEBACK,
    shares,
)
from .known_differences import UNSETTLED, expected
from .rules import RULES, outcome
from .share import Place

assert all((rules_attributes, rules_create, rules_data, rules_locks, rules_set_id, rules_xattrs))


@cache
def outcome_on_the_host(name: str, host: Place) -> object:
    return outcome(RULES[name], host)


def comparable(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", RULES)
def test_the_host_keeps_the_rule(host: Place, name: str) -> None:
    assert comparable(outcome_on_the_host(name, host)) == RULES[name].expected


def check(place: Place, host: Place, name: str) -> None:
    wanted = expected(name, place.setup.name, outcome_on_the_host(name, host))
    found = outcome(RULES[name], place)
    assert wanted in (found, UNSETTLED)


@pytest.mark.parametrize("name", [name for name in RULES if "set id bits" in name])
@shares(PLAIN, NO_KILLPRIV, NO_IDMAPPED)
def test_a_share_with_other_options_does_as_the_host(share: Place, host: Place, name: str) -> None:
    check(share, host, name)


@pytest.mark.parametrize("name", RULES)
@shares(ONE_QUEUE, FOUR_QUEUES, USERNS, deep=(NO_KILLPRIV, NEVER, ALWAYS, WRITEBACK))
def test_the_share_does_as_the_host(share: Place, host: Place, name: str) -> None:
    check(share, host, name)
