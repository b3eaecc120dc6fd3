# SPDX-License-Identifier: Apache-2.0
"""The protocols by which processes take over from each other, in any order of their steps."""

from collections.abc import Hashable, Iterator
from pathlib import Path

import pytest

from . import keepers, launchers, pools, requests
from .explorer import BrokenError, explore
from .keepers import Keepers
from .launchers import Launchers
from .pools import Pools
from .requests import DEADLY, MKDIR, Requests
from .table import MODELS, table

DOCUMENT = Path(__file__).parents[2] / "docs" / "deaths.md"
CRASHES = "a fault is not counted"  # shows only in an op that crashes its worker


@pytest.mark.parametrize("name", MODELS)
def test_the_protocol_keeps_its_properties(name: str) -> None:
    assert explore(MODELS[name][1]()).states > 50


@pytest.mark.parametrize(("fault", "why"), keepers.FAULTS.items())
def test_a_broken_protocol_of_keepers_is_found(fault: str, why: str) -> None:
    with pytest.raises(BrokenError, match=why):
        explore(Keepers(fault))


@pytest.mark.parametrize(("fault", "why"), launchers.FAULTS.items())
def test_a_broken_protocol_of_launchers_is_found(fault: str, why: str) -> None:
    with pytest.raises(BrokenError, match=why):
        explore(Launchers(fault))


@pytest.mark.parametrize(("fault", "why"), pools.FAULTS.items())
def test_a_broken_protocol_of_pools_is_found(fault: str, why: str) -> None:
    with pytest.raises(BrokenError, match=why):
        explore(Pools(fault))


@pytest.mark.parametrize(("fault", "why"), requests.FAULTS.items())
def test_a_broken_protocol_of_requests_is_found(fault: str, why: str) -> None:
    with pytest.raises(BrokenError, match=why):
        explore(Requests(DEADLY if fault == CRASHES else MKDIR, fault))


class Counter:
    """Counts to three; `step` from `stop` on is not possible."""

    def __init__(self, stop: int = 3, largest: int = 3) -> None:
        self._stop, self._largest = stop, largest

    def initial(self) -> Hashable:
        return 0

    def steps(self, state: Hashable) -> Iterator[tuple[str, Hashable]]:
        assert isinstance(state, int)
        if state < self._stop:
            yield "one more", state + 1

    def wrong(self, state: Hashable) -> str | None:
        assert isinstance(state, int)
        return "too many" if state > self._largest else None

    def is_done(self, state: Hashable) -> bool:
        return state == 3


def test_the_explorer_visits_all_states_and_finds_what_is_broken() -> None:
    assert explore(Counter()) == (4, 3)
    with pytest.raises(BrokenError, match="the work is never done: at the beginning"):
        explore(Counter(stop=2))
    with pytest.raises(BrokenError, match="too many: one more, one more, one more"):
        explore(Counter(largest=2))


def test_the_document_has_the_sizes_of_the_models() -> None:
    """`python -m tests.model` prints the table."""
    assert table() in DOCUMENT.read_text()
