# SPDX-License-Identifier: Apache-2.0
"""The result of a run, and its table in Markdown."""

from collections import defaultdict
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from .killer import PAIR, Event
from .probe import Stall, longest_stalls
from .workload import Failure

EVENTS_SHOWN: Final = 4  # the last events before a failure
FAILURES_SHOWN: Final = 12


@dataclass
class Report:
    """What happened in one run. `wrong` has one sentence for each other error: a hang, a leak."""

    queues: int
    seed: int
    seconds: float
    events: list[Event] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    looks: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # workload -> steps
    failures: list[Failure] = field(default_factory=list)
    lost_files: int = 0  # without a name, when a sandbox was lost
    held_files: int = 0  # without a name, which stay open until the guest unmounts
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be done here

    def _sandboxes_lost(self) -> int:
        return sum("holder" in event.what for event in self.events)

    @property
    def is_good(self) -> bool:
        return not self.failures and not self.wrong and not self._is_too_much_lost()

    def _is_too_much_lost(self) -> bool:
        """Is more lost than the deaths explain? `held_files`: a look-up that was in flight when its
        worker died may be counted twice, and then the file is not forgotten."""
        deaths = sum(len(event.pids) for event in self.events)
        return bool(self.lost_files and not self._sandboxes_lost()) or self.held_files > deaths

    def markdown(self) -> str:
        steps = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        lines = [
            f"### {self.queues} queues, {self.seconds:.0f} s, seed {self.seed}",
            "",
            f"Steps: {steps}; look-ups of the probe: {self.looks}.",
            "",
            "| what | how | times | longest stall: p50 | p99 | max |",
            "|---|---|---|---|---|---|",
            *self._rows(),
            "",
            f"Errors of users: {len(self.failures)}. Other errors: {len(self.wrong)}.",
            self._lost(),
            *(f"- {text}" for text in (*self.notes, *self.wrong, *self._failures())),
        ]
        return "\n".join(lines)

    def _lost(self) -> str:
        return (
            f"Lost with a sandbox: {self.lost_files} open files without a name. Held until the"
            f" guest unmounts: {self.held_files} files without a name."
        )

    def _rows(self) -> list[str]:
        longest = longest_stalls(self.stalls, self.events)
        show = _milliseconds if self.looks else _not_measured
        groups: dict[tuple[str, str], list[float]] = defaultdict(list)
        for event in self.events:
            groups[_kind(event)].append(longest.get(id(event), 0.0))
        return [
            f"| {what} | {way} | {len(stalls)} | {' | '.join(show(stalls))} |"
            for (what, way), stalls in sorted(groups.items())
        ]

    def _failures(self) -> list[str]:
        return [
            f"{f.at:.3f} {f.workload}: {f.op} {f.path}: {f.error} {f.text}; before that:"
            f" {'; '.join(map(str, self._before(f.at))) or 'nothing'}"
            for f in sorted(self.failures, key=lambda failure: failure.at)[:FAILURES_SHOWN]
        ]

    def _before(self, at: float) -> list[Event]:
        return [event for event in self.events if event.at <= at][-EVENTS_SHOWN:]


def _kind(event: Event) -> tuple[str, str]:
    """What died, and how. There are too many kinds of pairs for a row of each."""
    if event.way != PAIR:
        return event.what, event.way
    return ("a holder and another process" if "holder" in event.what else "two others"), PAIR


def _milliseconds(seconds: list[float]) -> list[str]:
    """The median, the 99th percentile and the maximum."""
    ordered = sorted(seconds)
    chosen = [ordered[max(0, ceil(part * len(ordered)) - 1)] for part in (0.5, 0.99, 1.0)]
    return [f"{1000 * value:.0f} ms" if value else "< 5 ms" for value in chosen]


def _not_measured(_: list[float]) -> list[str]:
    return ["not measured"] * 3
