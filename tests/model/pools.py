# SPDX-License-Identifier: Apache-2.0
"""The holder creates pools, and pools create the worker of a slot (holder.py, pool.py, workers.py).

Worker and pool may die at any step, also both. The holder reaps them in any order.

Safety: never two workers in the slot, since they would serve one ring. Done: the slot has a living
worker, and a pool that knows this worker.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from .explorer import DEATH

DEATHS: Final = 5
FAULTS: Final = {
    "the note comes after the worker": "two workers",
    "the next pool does not look for the newborn": "two workers",
    "the pid of the last newborn stays": "never done",
    "a death counts as seen before the pool acts": "never done",
}


@dataclass(frozen=True)
class Record:
    """What a pool knows, and saves (pool_state.py)."""

    pid: int = 0  # of the worker; 0: none
    newborn: bool = False  # a worker is being created
    respawn: bool = True  # a worker is due
    seen: int = 0  # deaths acted on


@dataclass(frozen=True)
class Pool:
    does: str  # what comes next
    knows: Record


@dataclass(frozen=True)
class State:
    pool: Pool | None = None
    record: Record = Record()  # as saved
    newborn_pid: int = 0  # written by the kernel
    workers: frozenset[int] = frozenset()
    unreaped: frozenset[int] = frozenset()
    log: tuple[int, ...] = ()  # the deaths that the holder has written down
    next_pid: int = 1
    deaths: int = DEATHS


class Pools:
    def __init__(self, fault: str = "") -> None:
        self._fault = fault

    def initial(self) -> State:
        return State()

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for pid in state.unreaped:
            reaped = replace(state, unreaped=state.unreaped - {pid}, log=(*state.log, pid))
            yield f"holder reaps worker {pid}", reaped
        if state.pool is None:
            yield "holder creates a pool", replace(state, pool=Pool("load", state.record))
        else:
            yield from self._pool_steps(state, state.pool)
        if state.deaths:
            yield from _deaths(replace(state, deaths=state.deaths - 1))

    def _pool_steps(self, state: State, pool: Pool) -> Iterator[tuple[str, State]]:
        knows = pool.knows
        if pool.does == "load":
            yield "pool loads", _goes_on(state, "save", self._taken_over(state, knows))
        elif pool.does == "save":
            yield "pool saves", _goes_on(replace(state, record=knows), "turn", knows)
        elif pool.does == "turn" and knows.seen < len(state.log):
            yield from self._act_on_death(state, knows)
        elif pool.does == "turn" and knows.respawn:
            pid = state.newborn_pid if self._fault == "the pid of the last newborn stays" else 0
            due = replace(knows, respawn=False, newborn=True)
            yield "pool begins a worker", _goes_on(replace(state, newborn_pid=pid), "note", due)
        elif pool.does == "note":
            is_late = self._fault == "the note comes after the worker"
            noted = state if is_late else replace(state, record=knows)
            yield "pool notes the newborn", _goes_on(noted, "clone", knows)
        elif pool.does == "clone":
            yield "pool clones", _clone(state, knows)
        elif pool.does == "act":
            yield "pool acts on a death", _goes_on(state, "save", _bury(state, knows))

    def _taken_over(self, state: State, record: Record) -> Record:
        finds = self._fault != "the next pool does not look for the newborn"
        if record.newborn and state.newborn_pid and finds:
            return replace(record, newborn=False, pid=state.newborn_pid)
        return replace(record, newborn=False, respawn=record.respawn or record.newborn)

    def _act_on_death(self, state: State, knows: Record) -> Iterator[tuple[str, State]]:
        if self._fault == "a death counts as seen before the pool acts":
            seen = replace(knows, seen=knows.seen + 1)
            yield "pool sees a death", _goes_on(replace(state, record=seen), "act", seen)
            return
        seen = replace(knows, seen=knows.seen + 1)
        yield "pool acts on a death", _goes_on(state, "save", _bury(state, seen))

    def wrong(self, state: State) -> str | None:
        return "two workers" if len(state.workers) > 1 else None

    def is_done(self, state: State) -> bool:
        if state.pool is None or state.pool.does != "turn" or state.unreaped:
            return False
        return state.pool.knows.pid in state.workers and state.pool.knows == state.record


def _goes_on(state: State, does: str, knows: Record) -> State:
    return replace(state, pool=Pool(does, knows))


def _bury(state: State, knows: Record) -> Record:
    """`knows` counts the death as seen already."""
    is_ours = state.log[knows.seen - 1] == knows.pid
    return replace(knows, pid=0, respawn=True) if is_ours else knows


def _clone(state: State, knows: Record) -> State:
    pid = state.next_pid
    made = replace(
        state, workers=state.workers | {pid}, newborn_pid=pid, next_pid=state.next_pid + 1
    )
    return _goes_on(made, "save", replace(knows, pid=pid, newborn=False))


def _deaths(state: State) -> Iterator[tuple[str, State]]:
    if state.pool is not None:
        yield f"{DEATH} of the pool", replace(state, pool=None)
    for pid in state.workers:
        yield (
            f"{DEATH} of worker {pid}",
            replace(state, workers=state.workers - {pid}, unreaped=state.unreaped | {pid}),
        )
