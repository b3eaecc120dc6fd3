# SPDX-License-Identifier: Apache-2.0
"""Visits every state that a model of a protocol can reach, whatever the order of its steps.

A model is a protocol between processes that share memory, in the smallest form that still can go
wrong. Each step is what the real process does between two moments at which its death makes a
difference. Two properties are checked:

* safety: no state that can be reached is wrong;
* progress: from each state that can be reached, if no process dies any more, there is a way to a
  state in which the work is done.
"""

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Final, NamedTuple, Protocol, TypeVar

DEATH: Final = "death"  # begins the label of a step that is not the protocol's
State = TypeVar("State", bound=Hashable)


class Model(Protocol[State]):
    def initial(self) -> State: ...

    def steps(self, state: State) -> Iterable[tuple[str, State]]:
        """What may happen next: a label, and the state after that."""

    def wrong(self, state: State) -> str | None:
        """Why this state must not be reached; None if it may."""

    def is_done(self, state: State) -> bool: ...


class Size(NamedTuple):
    states: int
    steps: int


class BrokenError(Exception):
    """A property does not hold; the message has the steps to the state."""


def explore(model: Model[State]) -> Size:
    """Visit all states; BrokenError if a property does not hold."""
    first = model.initial()
    came_from: dict[State, tuple[State, str] | None] = {first: None}
    before: dict[State, list[State]] = {first: []}  # by steps of the protocol
    waiting, steps = deque([first]), 0
    while waiting:
        state = waiting.popleft()
        if (why := model.wrong(state)) is not None:
            raise BrokenError(f"{why}: {_way(came_from, state)}")
        for label, after in model.steps(state):
            steps += 1
            if after not in came_from:
                came_from[after] = state, label
                before[after] = []
                waiting.append(after)
            if not label.startswith(DEATH):
                before[after].append(state)
    _check_progress(model, came_from, before)
    return Size(len(came_from), steps)


def _check_progress(
    model: Model[State],
    came_from: dict[State, tuple[State, str] | None],
    before: dict[State, list[State]],
) -> None:
    waiting = [state for state in before if model.is_done(state)]
    can_end = set(waiting)
    while waiting:
        for state in before[waiting.pop()]:
            if state not in can_end:
                can_end.add(state)
                waiting.append(state)
    for state in before:
        if state not in can_end:
            raise BrokenError(f"the work is never done: {_way(came_from, state)}")


def _way(came_from: dict[State, tuple[State, str] | None], state: State) -> str:
    labels = []
    while (origin := came_from[state]) is not None:
        state, label = origin
        labels.append(label)
    return ", ".join(reversed(labels)) or "at the beginning"
