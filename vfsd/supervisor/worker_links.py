# SPDX-License-Identifier: Apache-2.0
"""The supervisor's zmq links to the workers, by slot: commands out; answers, events and logs in."""

import math
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Final

from vfsd.supervisor.event_loop import EventLoop
from vfsd.transport.channel import SupervisorEnd
from vfsd.transport.control_messages import (
    Adopted,
    Content,
    Hello,
    LogLine,
    RingBroken,
    adopt,
    decode_adopted,
    decode_worker_event,
)
from vfsd.transport.errors import ProtocolError

ADOPT_SECONDS: Final = 5.0  # a worker drains a ring for at most 2 of them
MESSAGES_A_TURN: Final = 100  # of one worker, so that none can keep the supervisor busy

WorkerEvent = LogLine | RingBroken | Hello


class WorkerLinks:
    """`on_event` gets (slot, event) for everything that is not an answer."""

    def __init__(self, loop: EventLoop, on_event: Callable[[int, WorkerEvent], None]) -> None:
        self._loop = loop
        self._on_event = on_event
        self._ends: dict[int, SupervisorEnd] = {}
        self._ids = count(time.monotonic_ns())  # no id of an earlier supervisor comes again
        self._waiting: dict[int, int] = {}  # request id -> slot
        self._adopted: dict[int, Adopted] = {}  # slot -> its answer
        self._late: list[int] = []
        loop.every_turn(self._pump)

    def connect(self, slot: int, path: str) -> None:
        end = SupervisorEnd(path)
        self._ends[slot] = end
        self._loop.register(end.fileno(), lambda: None)  # _pump() comes in every turn

    def close(self) -> None:
        self._loop.no_more_turns(self._pump)
        for end in self._ends.values():
            self._loop.unregister(end.fileno())
            end.close()
        self._ends.clear()
        self._waiting.clear()

    def give_up(self, slot: int) -> None:
        """Nobody will answer there any more: what waits for that has waited long enough."""
        for request_id in [i for i, asked in self._waiting.items() if asked == slot]:
            del self._waiting[request_id]
            self._late.append(slot)

    def adopt(self, generation: int, slots: Iterable[int]) -> tuple[dict[int, Adopted], list[int]]:
        """Have the workers of `slots` work with this generation of the device state.

        Returns their answers by slot, and the slots that did not answer in time.
        """
        self._adopted, self._late = {}, []
        for slot in slots:
            request_id = next(self._ids)
            self._waiting[request_id] = slot
            self._ends[slot].command(request_id, adopt(generation), ADOPT_SECONDS)
        self._loop.wait(lambda: not self._waiting)
        return self._adopted, self._late

    def _pump(self) -> float:
        """Take in and resend what there is; returns seconds until there is something to resend."""
        soon = math.inf
        for slot, end in list(self._ends.items()):
            end.resend()  # first: sending may take the event of what has arrived off the fd
            taken = self._take(slot, end)
            late = [self._waiting.pop(i) for i in end.expired() if i in self._waiting]
            self._late += late
            if taken or late:
                soon = 0.0  # it may be what somebody waits for
            if (wake_at := end.wake_at()) is not None:
                soon = min(soon, wake_at - time.monotonic())
        return max(0.0, soon)

    def _take(self, slot: int, end: SupervisorEnd) -> int:
        """Take in what a worker sent, up to a limit; returns how many messages."""
        for taken in range(MESSAGES_A_TURN):
            try:
                if (content := end.receive()) is None:
                    return taken
                self._dispatch(slot, content)
            except ProtocolError as error:
                self._on_event(slot, LogLine("error", f"sent nonsense: {error}"))
        return MESSAGES_A_TURN

    def _dispatch(self, slot: int, content: Content) -> None:
        if "id" not in content:
            self._on_event(slot, decode_worker_event(content))
            return
        self._waiting.pop(content["id"], None)
        self._adopted[slot] = decode_adopted(content)
