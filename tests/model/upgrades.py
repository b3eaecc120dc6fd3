# SPDX-License-Identifier: Apache-2.0
"""The switch from one version to the next (upgrade.py, takeover.py), from the moment at which the
new version is prepared.

Assumption: keeper and supervisor of a version do not die at once, except that all of the new
version may die before it has sent SERVING.

Safety: workers of both versions never run at the same time. Done: one version serves, and the other
one has ended.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from .explorer import DEATH

DEATHS: Final = 6
UNSAVED: Final = "GO is sent before that is saved"
TAKEN_OFF: Final = "SERVING is taken off the socket before the end is saved"
GO_TAKEN_OFF: Final = "GO is taken off the socket"
FORGOTTEN: Final = "what was sent is lost when the socket is closed"
EARLY: Final = "the old version resumes when the new version is slow"
FAULTS: Final = {
    UNSAVED: "workers of both versions",
    TAKEN_OFF: "workers of both versions",
    GO_TAKEN_OFF: "never done",
    FORGOTTEN: "workers of both versions",
    EARLY: "workers of both versions",
}
# What the old supervisor saves or does without a condition.
SAVES: Final[dict[str, dict[str, Any]]] = {
    "saves": {"old": "sends", "old_saved": True},
    "ends": {"old": "has ended", "has_ended": True},
    "resumes": {"old": "creates", "old_saved": False, "old_open": False},
    "creates": {"old": "serves", "old_works": True},
}


@dataclass(frozen=True)
class State:
    """`old`, `new`: what the supervisors do next. `*_saved`: GO, or that the VM is taken, is in the
    saved state. `has_ended`, `has_served`: so is the end of this part."""

    deaths: int
    old: str = "halts"
    new: str = "takes"
    old_works: bool = True  # it has workers
    new_works: bool = False
    old_saved: bool = False
    new_saved: bool = False
    has_ended: bool = False
    has_served: bool = False
    taken: bool = False  # these are on the socket
    go: bool = False
    serving: bool = False
    old_open: bool = True  # its end of the socket
    new_open: bool = True


class Upgrades:
    def __init__(self, fault: str = "") -> None:
        self._fault = fault

    def initial(self) -> State:
        return State(DEATHS)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for after in self._old(state):
            yield f"old {state.old}", after
        for after in self._new(state):
            yield f"new {state.new}", after
        if not state.deaths:
            return
        fewer = replace(state, deaths=state.deaths - 1)
        if state.old != "has ended":
            yield f"{DEATH} of the old supervisor", _after_old(fewer)
        if state.new != "is gone":
            yield f"{DEATH} of the new supervisor", _after_new(fewer)
            if not state.serving and not state.new_works and not state.has_served:
                yield f"{DEATH} of all of the new version", _gone(fewer)

    def _old(self, state: State) -> Iterator[State]:
        match state.old:
            case "halts":
                yield replace(state, old="waits", old_works=False)
            case "waits" if state.taken:
                yield replace(state, old="sends" if self._fault == UNSAVED else "saves")
            case "waits" if not state.new_open:
                yield replace(state, old="resumes")
            case "sends":
                yield replace(state, old="listens", go=state.go or state.new_open)
            case "listens" if state.serving:
                stays = self._fault != TAKEN_OFF
                yield replace(state, old="ends", serving=stays)
            case "listens" if not state.new_open or self._fault == EARLY:
                yield replace(state, old="resumes")
        if state.old in SAVES:
            yield replace(state, **SAVES[state.old])

    def _new(self, state: State) -> Iterator[State]:
        match state.new:
            case "takes":
                yield replace(state, new="reports", new_saved=True)
            case "reports":
                yield replace(state, new="waits", taken=True)
            case "waits" if state.go:
                yield replace(state, new="answers", go=self._fault != GO_TAKEN_OFF)
            case "waits" if not state.old_open:
                yield _gone(state)
            case "answers":
                yield replace(state, new="settles", serving=True)
            case "settles":
                yield replace(state, new="closes", has_served=True)
            case "closes":
                serving = state.serving and self._fault != FORGOTTEN
                yield replace(state, new="creates", new_open=False, serving=serving)
            case "creates":
                yield replace(state, new="serves", new_works=True)

    def wrong(self, state: State) -> str | None:
        return "workers of both versions" if state.old_works and state.new_works else None

    def is_done(self, state: State) -> bool:
        return (state.old, state.new) in {("has ended", "serves"), ("serves", "is gone")}


def _after_old(state: State) -> State:
    """The next old supervisor begins, or the keeper ends if the end was saved."""
    if state.has_ended:
        return replace(state, old="has ended")
    if state.old_saved:
        return replace(state, old="sends")
    return replace(state, old="resumes", old_open=False)


def _after_new(state: State) -> State:
    if state.has_served:
        return replace(state, new="closes")
    return replace(state, new="reports") if state.new_saved else _gone(state)


def _gone(state: State) -> State:
    return replace(state, new="is gone", new_works=False, new_open=False)
