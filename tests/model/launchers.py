# SPDX-License-Identifier: Apache-2.0
"""The launcher's deputy takes its place, and whichever process lives cleans up (succession.py).

Assumption: of launcher and deputy, at most one is dead at a time, until everything has been cleaned
up. The share may end at any time.

Safety: never two launchers, and no cleaning up after that has been done: the next daemon may have
files of the same names by then. Done: a launcher that has a deputy, or, when the share has ended,
nothing but what was cleaned up.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from .explorer import DEATH

DEATHS: Final = 6
LAUNCHER, DEPUTY = "launcher", "deputy"
SERVE, MARK, END = "serve", "mark", "end"  # what a launcher does next
NO_HEIR: Final = "a launcher does not replace its deputy"
HASTY: Final = "a deputy does not wait"
NO_MARK: Final = "a deputy does not look at the mark"
UNKNOWN: Final = "a launcher does not know the deputy that it has forked"
FAULTS: Final = {
    NO_HEIR: "never done",
    HASTY: "two launchers",
    NO_MARK: "cleaned up again",
    UNKNOWN: "two launchers",
}


@dataclass(frozen=True)
class Process:
    pid: int
    role: str
    other: int  # the pid of the partner; 0: not created yet
    does: str = SERVE


@dataclass(frozen=True)
class State:
    alive: frozenset[Process]
    next_pid: int
    deaths: int
    has_ended: bool = False  # the share
    is_clean: bool = False
    is_marked: bool = False
    is_spoilt: bool = False  # cleaned up after it was marked as clean


class Launchers:
    def __init__(self, fault: str = "") -> None:
        self._fault = fault

    def initial(self) -> State:
        return State(frozenset({Process(1, LAUNCHER, 0)}), 2, DEATHS)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if not state.has_ended:
            yield f"{DEATH} of the share", replace(state, has_ended=True)
        for process in state.alive:
            for label, after in self._step(state, process):
                yield f"{process.role} {process.pid} {label}", after
            if state.deaths and (len(state.alive) > 1 or state.is_marked):
                after = replace(_without(state, process), deaths=state.deaths - 1)
                yield f"{DEATH} of {process.role} {process.pid}", after

    def _step(self, state: State, process: Process) -> Iterator[tuple[str, State]]:
        is_alone = process.other not in {other.pid for other in state.alive}
        if process.role == DEPUTY:
            if is_alone or self._fault == HASTY:
                yield self._inherit(state, process)
        elif process.does == SERVE and state.has_ended:
            after = replace(state, is_clean=True, is_spoilt=state.is_marked)
            yield "cleans up", _next(after, process, does=MARK)
        elif process.does == MARK:
            yield "marks", _next(replace(state, is_marked=True), process, does=END)
        elif process.does == END and not is_alone:
            yield "ends its deputy", replace(state, alive=frozenset({process}))
        elif process.does == END:
            yield "exits", _without(state, process)
        elif is_alone and not (self._fault == NO_HEIR and process.other):
            yield "forks a deputy", _fork(state, process, is_known=self._fault != UNKNOWN)

    def _inherit(self, state: State, process: Process) -> tuple[str, State]:
        if state.is_marked and self._fault != NO_MARK:
            return "exits", _without(state, process)
        return "takes over", _next(state, process, role=LAUNCHER, other=0)

    def wrong(self, state: State) -> str | None:
        if sum(process.role == LAUNCHER for process in state.alive) > 1:
            return "two launchers"
        return "cleaned up again" if state.is_spoilt else None

    def is_done(self, state: State) -> bool:
        if state.has_ended:
            return state.is_clean and not state.alive
        pids = {process.pid for process in state.alive}
        return len(pids) == 2 and all(process.other in pids for process in state.alive)


def _without(state: State, process: Process) -> State:
    return replace(state, alive=state.alive - {process})


def _next(state: State, process: Process, **changes: object) -> State:
    return replace(state, alive=state.alive - {process} | {replace(process, **changes)})  # type: ignore[arg-type]


def _fork(state: State, process: Process, is_known: bool) -> State:
    deputy = Process(state.next_pid, DEPUTY, process.pid)
    launcher = replace(process, other=deputy.pid if is_known else 0)
    alive = state.alive - {process} | {launcher, deputy}
    return replace(state, alive=alive, next_pid=state.next_pid + 1)
