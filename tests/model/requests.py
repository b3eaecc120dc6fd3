# SPDX-License-Identifier: Apache-2.0
"""A request, its mark in the in-flight record and its intent (vring.c, inflight.c, intent.c).

A worker may die at any step, by a kill from outside or by a fault that the request may have caused.
The op is a mkdir, which the next worker can find out to have happened; a FORGET, of which nothing
shows that; or an op that crashes its worker each time.

Safety: one reply at most; a reply without an error for an op that has happened once; an op never
happens twice; EIO only after two faults. Done: the guest has its reply, and nothing is in flight. A
FORGET has no reply, and may be lost.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from .explorer import DEATH

DEATHS: Final = 6
DEADLY_TRIES: Final = 2  # of intent.c
NONE, BEGUN, DONE = "none", "begun", "done"
MKDIR, FORGET, DEADLY = "mkdir", "FORGET", "a request that crashes its worker"
FAULTS: Final = {
    "no intent says that the op has begun": "happened 2 times",
    "the intent is done before the op": "happened 0 times",
    "a published head is not settled": "2 replies",
    "the mark is cleared before the reply": "never done",
    "a kill counts as a fault": "EIO",
    "a fault is not counted": "never done",
}


@dataclass(frozen=True)
class State:
    op: str
    does: str = "attach"  # what the worker does next; "": there is no worker
    # The record of the ring.
    is_taken: bool = False  # the guest's avail index has been passed
    in_flight: bool = False
    settled: int = 0  # the used index in the record
    # The intent.
    intent: str = NONE
    tries: int = 0
    # The worker.
    replayed: bool = False
    error: bool = False
    # What the pool knows of the last death.
    faulted: bool = False
    faults: int = 0
    deaths: int = DEATHS
    # The world.
    happened: int = 0
    replies: int = 0  # the used index in the ring
    got_error: bool = False


class Requests:
    def __init__(self, op: str = MKDIR, fault: str = "") -> None:
        self._op = op
        self._fault = fault

    def initial(self) -> State:
        return State(self._op)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if not state.does:
            yield "the pool creates a worker", replace(state, does="attach")
            return
        if state.does != "serve" or not state.is_taken:
            yield f"the worker does: {state.does}", self._step(state)
        if state.deaths:
            fewer = replace(state, deaths=state.deaths - 1)
            yield f"{DEATH} by a kill", _dead(fewer, is_fault=False)
            yield f"{DEATH} by a fault", _dead(fewer, is_fault=True)

    def _step(self, state: State) -> State:
        match state.does:
            case "attach":
                return self._attach(state)
            case "serve":
                taken = replace(state, is_taken=True, in_flight=True)
                return replace(taken, does="begin")
            case "begin":
                return replace(state, does="op", intent=self._begun(state))
            case "op":
                return self._run(state)
            case "record":
                return replace(state, does="publish", intent=DONE)
            case "publish":
                return self._publish(state)
            case "clear":
                return replace(state, does="settle", in_flight=False)
            case "settle":
                return replace(state, does="serve", settled=state.replies)
        raise AssertionError(state.does)

    def _attach(self, state: State) -> State:
        if state.settled != state.replies and self._fault != "a published head is not settled":
            state = replace(state, in_flight=False)
        state = replace(state, settled=state.replies)
        if not state.in_flight:
            return replace(state, does="serve")
        if state.intent == DONE:
            return replace(state, does="publish")
        if self._counts(state):
            state = replace(state, tries=state.tries + 1)
        if state.tries >= DEADLY_TRIES:
            return replace(state, does="publish", error=True)
        return replace(state, does="begin", replayed=state.intent == BEGUN)

    def _counts(self, state: State) -> bool:
        """Does the last death count against the request?"""
        if self._fault == "a kill counts as a fault":
            return True
        return state.faulted and self._fault != "a fault is not counted"

    def _begun(self, state: State) -> str:
        if state.op == FORGET or self._fault == "the intent is done before the op":
            return DONE
        return NONE if self._fault == "no intent says that the op has begun" else BEGUN

    def _run(self, state: State) -> State:
        """mkdir compares with the file system if it may have happened already."""
        if state.op == DEADLY:
            return _dead(state, is_fault=True)
        is_there = state.replayed and state.op == MKDIR and state.happened
        state = state if is_there else replace(state, happened=state.happened + 1)
        return replace(state, does="record")

    def _publish(self, state: State) -> State:
        replied = replace(state, replies=state.replies + 1, got_error=state.error, does="clear")
        if self._fault == "the mark is cleared before the reply" and state.in_flight:
            return replace(state, in_flight=False)
        return replied

    def wrong(self, state: State) -> str | None:
        if state.replies > 1:
            return f"{state.replies} replies"
        if state.happened > 1:
            return f"it happened {state.happened} times"
        if state.op == MKDIR and state.replies and not state.got_error and not state.happened:
            return "success, and it happened 0 times"
        if state.got_error and state.faults < DEADLY_TRIES:
            return f"EIO after {state.faults} faults"
        return None

    def is_done(self, state: State) -> bool:
        return state.replies == 1 and not state.in_flight and state.does == "serve"


def _dead(state: State, is_fault: bool) -> State:
    faults = min(state.faults + is_fault, DEADLY_TRIES)
    return replace(state, does="", replayed=False, error=False, faulted=is_fault, faults=faults)
