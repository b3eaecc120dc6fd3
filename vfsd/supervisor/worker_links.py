# SPDX-License-Identifier: Apache-2.0
"""The supervisor's links to the workers, by slot: commands out; answers, events and logs in.

All messages of workers are checked in one place: _take() turns each message into an event, an
acknowledgement or a ProtocolError. A worker of ours never breaks the protocol, so a worker that
breaks it VIOLATIONS times must be killed (on_violation). A worker that sends without end is read at
a bounded rate: the rest waits in the worker's socket, where it costs the supervisor nothing.
"""

import math
import time
from collections.abc import Iterable
from functools import partial
from itertools import count
from typing import Final, Protocol

from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.worker_link import WorkerLink
from vfsd.transport.control_messages import (
    Adopted,
    Content,
    Hello,
    LogLine,
    RingBroken,
    adopt,
    decode_adopted,
    decode_worker_event,
    log_level,
)
from vfsd.transport.errors import ProtocolError

ADOPT_SECONDS: Final = 5.0  # a worker drains a ring for at most 2 seconds
MESSAGES_A_TURN: Final = 100  # of one worker, so that no worker can keep the supervisor busy
REST_SECONDS: Final = 0.05  # for which a worker is not read after MESSAGES_A_TURN messages
VIOLATIONS: Final = 5  # breaks of the protocol after which a worker must be killed

WorkerEvent = LogLine | RingBroken | Hello


class WorkerListener(Protocol):
    """The receiver of what workers send. The event loop calls it, so it must not wait."""

    def on_worker_event(self, slot: int, event: WorkerEvent) -> None: ...

    def on_violation(self, slot: int, error: str, count: int) -> None:
        """A worker broke the protocol for the `count`-th time; its link was closed."""


class WorkerLinks:
    """The links. `vring_count`: the number of vrings of the device, hiprio included."""

    def __init__(self, loop: EventLoop, vring_count: int, listener: WorkerListener) -> None:
        self._loop = loop
        self._vring_count = vring_count
        self._listener = listener
        self._links: dict[int, WorkerLink] = {}
        self._ids = count(time.monotonic_ns())  # no id of an earlier supervisor
        self._waiting: dict[int, tuple[int, int]] = {}  # request id -> slot, generation
        self._adopted: dict[int, Adopted] = {}  # slot -> its answer
        self._late: list[int] = []
        self._unheeded: set[int] = set()  # ids of commands whose answer has no content
        loop.every_turn(self._tick)

    def connect(self, slot: int, path: str) -> None:
        link = WorkerLink(path)
        self._links[slot] = link
        self._loop.register(link.fileno(), partial(self._take, slot, link))

    def close(self) -> None:
        self._loop.no_more_turns(self._tick)
        for link in self._links.values():
            self._loop.unregister(link.fileno())
            link.close()
        self._links.clear()
        self._waiting.clear()

    def give_up(self, slot: int) -> None:
        """No worker of this slot will answer any more: count its pending commands as late."""
        for request_id in [i for i, (asked, _) in self._waiting.items() if asked == slot]:
            self._end(slot, request_id)
            self._late.append(slot)

    def adopt(
        self, generation: int, slots: Iterable[int], ends_session: bool = False
    ) -> tuple[dict[int, Adopted], list[int]]:
        """Have the workers of `slots` adopt this generation of the device state.

        `ends_session`: as control_messages.adopt().
        Returns their answers by slot, and the slots that did not answer in time.
        """
        self._adopted, self._late = {}, []
        command = adopt(generation, ends_session)
        for slot in slots:
            request_id = next(self._ids)
            self._waiting[request_id] = slot, generation
            self._links[slot].command(request_id, command, ADOPT_SECONDS)
        self._loop.wait(lambda: not self._waiting)
        return self._adopted, self._late

    def set_log_level(self, slot: int, level: str) -> None:
        """Have the worker of `slot` log from this level up. The answer is not waited for."""
        if slot in self._links:
            request_id = next(self._ids)
            self._unheeded.add(request_id)
            self._links[slot].command(request_id, log_level(level), ADOPT_SECONDS)

    def forgive(self, slot: int) -> None:
        """Reset the violations of `slot`: another worker will be there from now on."""
        self._links[slot].violations = 0

    def _tick(self) -> float:
        """Do what is due; returns the seconds until something else is due."""
        soon = math.inf
        for slot, link in self._links.items():
            late = link.expired()
            self._unheeded -= set(late)
            waited = [request_id for request_id in late if request_id in self._waiting]
            self._late += [self._waiting.pop(request_id)[0] for request_id in waited]
            if link.tick():
                self._take(slot, link)
            soon = 0.0 if late else min(soon, link.wake_at() - time.monotonic())
        return max(0.0, soon)

    def _take(self, slot: int, link: WorkerLink) -> None:
        """Take in at most MESSAGES_A_TURN messages of a worker."""
        try:
            for _ in range(MESSAGES_A_TURN):
                if (content := link.receive()) is None:
                    return
                self._dispatch(slot, link, content)
        except ProtocolError as error:
            link.break_off()
            self._listener.on_violation(slot, str(error), link.violations)
        else:
            link.rest(REST_SECONDS)

    def _dispatch(self, slot: int, link: WorkerLink, content: Content) -> None:
        if "id" not in content:
            event = decode_worker_event(content, self._vring_count)
            self._listener.on_worker_event(slot, event)
            return
        request_id = content["id"]
        if not link.is_pending(request_id):
            return  # a second answer to a repeated command, or one for an earlier supervisor
        if request_id in self._unheeded:
            self._unheeded.remove(request_id)
            link.end(request_id)
            return
        _, generation = self._waiting[request_id]
        self._adopted[slot] = decode_adopted(content, generation, self._vring_count)
        self._end(slot, request_id)

    def _end(self, slot: int, request_id: int) -> None:
        """Stop waiting for the answer to a command; an answer that comes later is ignored."""
        self._links[slot].end(request_id)
        del self._waiting[request_id]
