# SPDX-License-Identifier: Apache-2.0
"""Keeper and supervisor create each other (keeper.py, keeper_watch.py).

Assumption: of keeper and supervisor, at most one is dead at a time; so any process may die at any
of its steps while another process lives. A pid may be used again as soon as its process is gone.

Safety: never two keepers, and never two supervisors. Done: one of each, and each watches the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from .explorer import DEATH

DEATHS: Final = 6
KEEPER, SUPERVISOR = "keeper", "supervisor"
# What a process does next.
WATCH, LOOK, WAIT, CREATE = "watch", "look", "wait", "create"
NOT_LOOKING: Final = {
    SUPERVISOR: "a supervisor does not compare its parent",
    KEEPER: "a keeper waits before it looks",
}
TOO_MANY: Final = "a supervisor creates a keeper without having lost one"
FAULTS: Final = {**dict.fromkeys(NOT_LOOKING.values(), "never done"), TOO_MANY: "two keepers"}


@dataclass(frozen=True)
class Process:
    pid: int
    role: str
    other: int  # the pid of the partner
    does: str
    is_signalled: bool = True  # the death of the partner will wake this process up


@dataclass(frozen=True)
class State:
    alive: frozenset[Process]
    next_pid: int
    deaths: int


class Keepers:
    def __init__(self, fault: str = "") -> None:
        self._fault = fault

    def initial(self) -> State:
        keeper = Process(1, KEEPER, 2, does=WAIT)
        supervisor = Process(2, SUPERVISOR, 1, does=WATCH)
        return State(frozenset({keeper, supervisor}), 3, DEATHS)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for process in state.alive:
            for label, after in self._step(state, process):
                yield f"{process.role} {process.pid} {label}", after
            if state.deaths and len(state.alive) > 1:
                alive = state.alive - {process}
                yield (
                    f"{DEATH} of {process.role} {process.pid}",
                    replace(state, alive=alive, deaths=state.deaths - 1),
                )

    def _step(self, state: State, process: Process) -> Iterator[tuple[str, State]]:
        is_lost = process.other not in {other.pid for other in state.alive}
        if process.does == WATCH:
            # A supervisor opens a pidfd; if its keeper is gone, another process may have the pid
            # by now. A keeper asks for a signal at the death of its parent, which may be dead.
            yield "watches", _next(state, process, does=LOOK, is_signalled=not is_lost)
            if is_lost and process.role == SUPERVISOR:
                yield "finds no process", _next(state, process, does=CREATE)
        elif process.does == LOOK:
            sees = is_lost and self._fault != NOT_LOOKING[process.role]
            yield "looks", _next(state, process, does=CREATE if sees else WAIT)
        elif process.does == WAIT and is_lost and process.is_signalled:
            yield "notices", _next(state, process, does=CREATE)
        elif process.does == CREATE:
            yield "creates", _create(state, process)
        if self._fault == TOO_MANY and process.role == SUPERVISOR and process.does == WAIT:
            yield "creates", _create(state, process)

    def wrong(self, state: State) -> str | None:
        for role in (KEEPER, SUPERVISOR):
            if sum(process.role == role for process in state.alive) > 1:
                return f"two {role}s"
        return None

    def is_done(self, state: State) -> bool:
        pids = {process.pid for process in state.alive}
        return len(state.alive) == 2 and all(
            process.does == WAIT and process.is_signalled and process.other in pids
            for process in state.alive
        )


def _next(state: State, process: Process, **changes: object) -> State:
    return replace(state, alive=state.alive - {process} | {replace(process, **changes)})  # type: ignore[arg-type]


def _create(state: State, process: Process) -> State:
    role = SUPERVISOR if process.role == KEEPER else KEEPER
    created = Process(state.next_pid, role, process.pid, does=WATCH)
    origin = replace(process, other=created.pid, does=WAIT, is_signalled=True)
    alive = state.alive - {process} | {created, origin}
    return replace(state, alive=alive, next_pid=state.next_pid + 1)
