# SPDX-License-Identifier: Apache-2.0
"""Kills processes of a daemon at random, and keeps a record of each kill."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from .memory_group import MemoryGroup
from .roles import ROLES, Role

# How a process dies, and how often: in 100.
KILL, PAIR, STOP, STOP_KILL, OOM = "kill", "pair", "stop", "stop, kill", "out of memory"
WEIGHTS: Final = {KILL: 84, PAIR: 8, STOP: 3, STOP_KILL: 3, OOM: 2}
STOP_SECONDS: Final = (0.1, 4.0)
RATE_SECONDS: Final = 3.0  # for which the rate stays the same
SLOWEST: Final = 0.5  # kills in a second
PARTNER_SECONDS: Final = 1.0  # for which the partner of a process that dies lives, at least
OOM_ROLES: Final = ("worker", "pool")
ALL: Final = "holder and all others"
END_SECONDS: Final = (2.0, 12.0)  # between two deaths of all processes


@dataclass
class Event:
    """A process was killed at `at`, or stopped from `at` to `until` (seconds, monotonic)."""

    at: float
    until: float
    what: str  # its role; both roles of a pair
    way: str
    pids: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.what} ({self.way}) at {self.at:.3f}"


class Killer(threading.Thread):
    """Kills until the block ends. `fastest`: kills in a second. `ends`: ways in which all
    processes end at once and are created again; each returns when they are there again."""

    def __init__(
        self,
        name: str,
        roles: Sequence[str],
        seed: int,
        fastest: float,
        group: MemoryGroup | None = None,
        ends: Mapping[str, Callable[[], None]] | None = None,
    ) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.errors: list[str] = []
        self._daemon = name
        self._roles = [ROLES[role] for role in roles]
        self._chance = random.Random(seed)  # noqa: S311
        self._fastest = fastest
        self._group = group
        self._ends = dict(ends or {})
        self._next_end = time.monotonic() + self._chance.uniform(*END_SECONDS)
        self._ended = threading.Event()
        self._stopped: list[Event] = []
        self._killed: set[int] = set()  # pids, some of which may not have ended yet
        self._next: dict[str, float] = {}  # role -> the time from which it may die again
        self._rate, self._rate_until = SLOWEST, 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        try:
            while not self._ended.wait(self._pause()):
                self._end_stops(time.monotonic())
                if self._ends and time.monotonic() > self._next_end:
                    self._end_all()
                else:
                    self._strike(time.monotonic())
        except Exception as error:  # a thread cannot raise
            self.errors.append(f"the killer ended: {error!r}")
        finally:
            self._end_stops(float("inf"))

    def _pause(self) -> float:
        now = time.monotonic()
        if now > self._rate_until:
            self._rate_until = now + RATE_SECONDS
            self._rate = SLOWEST * (self._fastest / SLOWEST) ** self._chance.random()
        return min(self._chance.expovariate(self._rate), 3 / self._rate)

    def _strike(self, now: float) -> None:
        self._killed = {pid for pid in self._killed if Path(f"/proc/{pid}").exists()}
        way = self._chance.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
        count = 2 if way == PAIR else 1
        if way == OOM:
            self._make_memory_short()
            return
        victims = [victim for victim in (self._victim(now) for _ in range(count)) if victim]
        if len(victims) < count:
            return
        pids = tuple(pid for _, pid in victims)
        what = " + ".join(sorted(role.name for role, _ in victims))
        stops = way in (STOP, STOP_KILL)
        until = now + self._chance.uniform(*STOP_SECONDS) if stops else now
        event = Event(now, until, what, way, pids)
        for pid in pids:
            self._send(pid, signal.SIGSTOP if stops else signal.SIGKILL)
        self.events.append(event)
        if stops:
            self._stopped.append(event)

    def _victim(self, now: float) -> tuple[Role, int] | None:
        """A role that may die now, and a process of this role."""
        free = [role for role in self._roles if self._next.get(role.name, 0.0) <= now]
        self._chance.shuffle(free)
        for role in free:
            if (pids := self._alive(role)) and self._has_partner(role):
                self._rest(role, now)
                return role, self._chance.choice(pids)
        return None

    def _alive(self, role: Role) -> list[int]:
        """The processes of a role that are neither stopped nor killed."""
        stopped = {pid for event in self._stopped for pid in event.pids}
        return sorted(set(role.pids(self._daemon)) - stopped - self._killed)

    def _has_partner(self, role: Role) -> bool:
        return role.partner is None or bool(self._alive(ROLES[role.partner]))

    def _rest(self, role: Role, now: float) -> None:
        """A process of this role dies; for a while no other one does, and no partner."""
        self._next[role.name] = now + 1 / role.per_second
        if role.partner:
            self._next[role.partner] = max(self._next.get(role.partner, 0.0), now + PARTNER_SECONDS)

    def _end_stops(self, now: float) -> None:
        for event in [
            event for event in self._stopped if event.until <= now or now == float("inf")
        ]:
            self._stopped.remove(event)
            event.until = time.monotonic()
            for pid in event.pids:
                self._send(pid, signal.SIGKILL if event.way == STOP_KILL else signal.SIGCONT)

    def _end_all(self) -> None:
        way = self._chance.choice(sorted(self._ends))
        event = Event(time.monotonic(), time.monotonic(), ALL, way, ())
        self.events.append(event)
        self._ends[way]()
        self._next_end = time.monotonic() + self._chance.uniform(*END_SECONDS)

    def _make_memory_short(self) -> None:
        """The kernel chooses: workers and pool have the highest score."""
        if self._group is None:
            return
        before, at = self._by_pid(), time.monotonic()
        self._group.oom()
        gone = {pid: what for pid, what in before.items() if pid not in self._by_pid()}
        if gone:
            what = " + ".join(sorted(gone.values()))
            self.events.append(Event(at, time.monotonic(), what, OOM, tuple(gone)))

    def _by_pid(self) -> dict[int, str]:
        """The processes that the kernel may choose, and their roles."""
        return {pid: role for role in OOM_ROLES for pid in self._alive(ROLES[role])}

    def _send(self, pid: int, number: signal.Signals) -> None:
        assert pid > 1, f"{pid} is not a single process"
        if number == signal.SIGKILL:
            self._killed.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, number)
