# SPDX-License-Identifier: Apache-2.0
"""What a pool knows, and its successor must know: the workers, the fds of the supervisor, the
answers given. pool_memory.py keeps the saved form."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from vfsd.transport.control_messages import Content
from vfsd.worker.fault_budget import FaultBudget
from vfsd.worker.pause import Pause

LONGEST_PAUSE: Final = 1.0  # seconds until the next worker of a slot
SHORT_LIFE: Final = 0.5  # seconds, of a worker
ANSWERS: Final = 8  # more than the supervisor has orders under way
CLOSER: Final = -1  # in `newborn`, where a worker has its slot


@dataclass
class Slot:
    """One place for a worker."""

    pid: int = 0  # 0: the slot is empty
    born: float = 0.0  # time.monotonic
    served: int = 0  # requests of the workers of this slot before this worker
    pause: Pause = field(default_factory=lambda: Pause(LONGEST_PAUSE, SHORT_LIFE))
    respawn_at: float | None = None  # time.monotonic, while the slot waits
    is_ended: bool = False  # no worker is created here again
    is_condemned: bool = False  # the worker was killed because it did not do its work
    # Both as descriptors.anonymous(). `before`: the fds that were open when the worker was created;
    # None once it has started. `private`: the fds that the worker has opened for itself by then.
    before: dict[int, str] | None = None
    private: dict[int, str] = field(default_factory=dict)

    @property
    def is_starting(self) -> bool:
        return bool(self.pid) and self.before is not None

    def note_death(self, now: float, served: int, may_be_deadly: bool) -> None:
        """`served`: the requests of this slot's workers by now. `may_be_deadly`: a request may
        have caused the death."""
        self.pid, self.is_condemned = 0, False
        self.pause.note_life(now - self.born, served > self.served and not may_be_deadly)

    def encode(self) -> list[Any]:
        """The fields as values that JSON can represent."""
        before = None if self.before is None else list(self.before.items())
        private = list(self.private.items())
        lives = self.pause.short_lives
        times = [self.born, self.respawn_at]
        states = [self.is_ended, self.is_condemned]
        return [self.pid, *times, self.served, lives, *states, before, private]

    @classmethod
    def decode(cls, content: list[Any]) -> "Slot":
        """Make the object again from what encode() returned."""
        pid, born, respawn_at, served, lives, is_ended, is_condemned, before, private = content
        pause = Pause(LONGEST_PAUSE, SHORT_LIFE, lives)
        before = None if before is None else dict(before)
        private = dict(private)
        return cls(pid, born, served, pause, respawn_at, is_ended, is_condemned, before, private)


@dataclass
class PoolState:
    """The whole state."""

    slots: list[Slot]
    faults: FaultBudget
    adopted: set[int] = field(default_factory=set)  # fds of the supervisor
    # pid of a process that closes files -> the fds that it closes
    closers: dict[int, set[int]] = field(default_factory=dict)
    # The process that is being created: its slot, or CLOSER with the fds that the process closes.
    newborn: int | None = None
    closing: set[int] = field(default_factory=set)
    is_halted: bool = False  # no worker is created (bequest.py)
    deaths_seen: int = 0  # the number of the next death to act on
    # The latest orders with their answers. An order comes again if a pool died before it answered.
    answers: deque[tuple[Any, Content]] = field(default_factory=lambda: deque(maxlen=ANSWERS))

    def answer_to(self, order: object) -> Content | None:
        """The answer that was given to the order with this id; None for a new order."""
        return next((answer for known, answer in self.answers if known == order), None)

    def encode(self) -> dict[str, Any]:
        """The fields as values that JSON can represent."""
        return {
            "slots": [slot.encode() for slot in self.slots],
            "faults": list(self.faults.times),
            "adopted": list(self.adopted),
            "closers": [(pid, list(fds)) for pid, fds in self.closers.items()],
            "newborn": self.newborn,
            "closing": list(self.closing),
            "is_halted": self.is_halted,
            "deaths_seen": self.deaths_seen,
            "answers": list(self.answers),
        }

    @classmethod
    def decode(cls, content: dict[str, Any], fault_limit: int) -> "PoolState":
        """Make the object again from what encode() returned."""
        return cls(
            slots=[Slot.decode(slot) for slot in content["slots"]],
            faults=FaultBudget(fault_limit, content["faults"]),
            adopted=set(content["adopted"]),
            closers={pid: set(fds) for pid, fds in content["closers"]},
            newborn=content["newborn"],
            closing=set(content["closing"]),
            is_halted=content["is_halted"],
            deaths_seen=content["deaths_seen"],
            answers=deque(((order, answer) for order, answer in content["answers"]), ANSWERS),
        )
