# SPDX-License-Identifier: Apache-2.0
"""`vfsd bench --compare`: measures every contender in turn, over several rounds, and compares
them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from vfsd.bench.arena import Arena, Contender, NotOfferedError, Sample, memory_or
from vfsd.bench.floor import bare_calls_us
from vfsd.bench.rows import Row
from vfsd.transport.errors import OperatorError

T = TypeVar("T")


@dataclass
class RowResult:
    """Samples of each contender, one for each round; fewer where a measurement failed."""

    row: Row
    samples: dict[str, list[Sample | None]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    bare: list[float] = field(default_factory=list)  # CPU microseconds of the bare system calls

    def numbers(self, name: str) -> list[float | None]:
        """The figure that the row compares, in each round."""
        rounds = self.samples.get(name, [])
        return [None if s is None else getattr(s, self.row.metric) for s in rounds]

    @property
    def bare_us(self) -> float | None:
        return median(self.bare) if self.bare else None

    def typical(self, name: str) -> Sample | None:
        """The median of each figure over the rounds."""
        samples = [asdict(s) for s in self.samples.get(name, []) if s]
        if not samples:
            return None
        figures: dict[str, Any] = {}
        for key in samples[0]:
            values = [s[key] for s in samples if s[key] is not None]
            figures[key] = median(values) if values else None
        return Sample(**figures)


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured."""

    ours: str
    contenders: tuple[str, ...]
    rows: tuple[RowResult, ...]
    bare: str = ""  # the name of the bare directory, which is not a peer: it has no back-end

    def ratio(self, result: RowResult) -> float | None:
        """The ratio of ours to the best peer of the same round; the median of the rounds. From
        times in a mount the time in a bare directory is subtracted first."""
        best = max if result.row.more_is_better else min
        peers = [result.numbers(n) for n in self.contenders if n not in (self.ours, self.bare)]
        bare = [] if result.row.more_is_better else result.numbers(self.bare)
        ratios = []
        for index, ours in enumerate(result.numbers(self.ours)):
            base = (bare[index] if index < len(bare) else None) or 0.0
            others = [
                n - base
                for rounds in peers
                if (n := rounds[index] if index < len(rounds) else None)
            ]
            if ours is not None and others and best(others) > 0:
                ratios.append((ours - base) / best(others))
        return median(ratios) if ratios else None

    def floor(self, result: RowResult) -> float | None:
        """The CPU microseconds that no back-end can avoid: the bare system calls, and what our
        back-end takes for the same number of requests that do nothing. None unless both were
        measured."""
        nothing = next((r.typical(self.ours) for r in self.rows if r.row.name == "null"), None)
        if not result.row.floor or result.bare_us is None or not nothing:
            return None
        return result.bare_us + result.row.floor.requests * (nothing.cpu_us or 0)

    def is_met(self, result: RowResult) -> bool | None:
        """Is the target met? None if there is no target, or no figure to compare with it."""
        target = result.row.target
        if target is None:
            return None
        ours = result.typical(self.ours)
        value = ours.value if ours else None
        number = value if target.absolute else self.ratio(result)
        return None if number is None else target.is_met(number)

    def as_json(self) -> dict[str, Any]:
        return {
            "ours": self.ours,
            "contenders": list(self.contenders),
            "rows": [self._row_json(result) for result in self.rows],
        }

    def _row_json(self, result: RowResult) -> dict[str, Any]:
        return {
            "name": result.row.name,
            "title": result.row.title,
            "metric": result.row.metric,
            "unit": result.row.unit,
            "target": None if result.row.target is None else str(result.row.target),
            "ratio": self.ratio(result),
            "met": self.is_met(result),
            "bare_us": result.bare_us,
            "floor_us": self.floor(result),
            "errors": result.errors,
            "samples": {
                name: [None if s is None else asdict(s) for s in samples]
                for name, samples in result.samples.items()
            },
        }


@dataclass(frozen=True)
class ComparisonPlan:
    """What to compare, and for how long."""

    contenders: Sequence[Contender]
    rows: Sequence[Row]
    rounds: int
    seconds: float
    folder: Path | None = None
    idle_seconds: float = 10.0


def rotated(contenders: Sequence[T], number: int) -> Sequence[T]:
    """The contenders in another order in each round: an earlier measurement leaves traces in caches
    and on disks, so no contender may always be first."""
    shift = number % len(contenders)
    return (*contenders[shift:], *contenders[:shift])


def compare(plan: ComparisonPlan, report: Callable[[str], object]) -> Comparison:
    """Measure; `report` gets a line about each measurement that begins."""
    results = {row.name: RowResult(row) for row in plan.rows}
    for number in range(plan.rounds):
        for row in plan.rows:
            report(f"round {number + 1} of {plan.rounds}: {row.title}")
            _measure_row(plan, row, results[row.name], number)
    ours = next(c.name for c in plan.contenders if c.is_ours)
    return Comparison(ours, tuple(c.name for c in plan.contenders), tuple(results.values()))


def _measure_row(plan: ComparisonPlan, row: Row, result: RowResult, number: int) -> None:
    if row.floor is not None:
        folder = memory_or(plan.folder) if row.in_memory else plan.folder
        seconds = min(plan.seconds, 0.5)
        result.bare.append(bare_calls_us(row.floor, row.block, folder, seconds))
    for contender in rotated(plan.contenders, number):
        if row.ours_only and not contender.is_ours:
            continue
        arena = Arena(contender, plan.folder, plan.seconds, plan.idle_seconds)
        sample = None
        try:
            sample = row.run(arena)
        except NotOfferedError:
            result.errors[contender.name] = "not offered"
        except OperatorError as error:
            result.errors[contender.name] = str(error)
        result.samples.setdefault(contender.name, []).append(sample)
