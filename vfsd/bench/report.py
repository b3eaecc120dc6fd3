# SPDX-License-Identifier: Apache-2.0
"""The output of `vfsd bench`: a table for people, a table in Markdown, and a chart (SVG)."""

from collections.abc import Iterator
from html import escape
from typing import Final

from vfsd.bench.arena import Sample
from vfsd.bench.compare import Comparison, RowResult

COLUMNS: Final = ("ops/s", "p50 us", "p99 us", "CPU us/op", "kicks/op", "calls/op", "value")
_COLOURS: Final = ("#1b6ca8", "#b0b0b0", "#8a8a8a", "#636363", "#d0c090", "#a89868")
_UNITS: Final = {"cpu_us": "CPU us", "rate": "ops/s"}
_BAR, _GAP, _LEFT, _WIDTH = 12, 10, 290, 460


def table(comparison: Comparison) -> str:
    """Every row and every contender; medians of the rounds."""
    lines = [f"{'':<26}" + "".join(f"{column:>11}" for column in COLUMNS)]
    for result in comparison.rows:
        lines += _row_lines(comparison, result)
    return "\n".join(lines) + "\n"


def _row_lines(comparison: Comparison, result: RowResult) -> Iterator[str]:
    yield ""
    yield f"{result.row.title}{_verdict(comparison, result)}"
    for name in comparison.contenders:
        sample = result.typical(name)
        if sample:
            yield f"  {name:<24}" + cells(sample, result.row.unit)
        elif name in result.errors:
            yield f"  {name:<24}  {result.errors[name]}"
    floor = comparison.floor(result)
    for name, cost in (("bare system calls", result.bare_us), ("... and requests", floor)):
        if cost is not None:
            yield f"  {name:<24}" + " " * 33 + f"{cost:>11.2f}"


def markdown(comparison: Comparison) -> str:
    """The compared figure of each row for every contender, and the ratio. All are medians of the
    rounds."""
    names = comparison.contenders
    floors = any(comparison.floor(result) is not None for result in comparison.rows)
    heads = [*names, *(["floor"] if floors else []), "ratio", "target"]
    lines = [f"| | {' | '.join(heads)} | |", "|---|" + "---|" * (len(heads) + 1)]
    for result in comparison.rows:
        figures = [_figure(result, name) for name in names]
        ratio, met = comparison.ratio(result), comparison.is_met(result)
        verdict = {True: "met", False: "**missed**", None: ""}[met]
        cells = [
            f"{result.row.title}, {_UNITS.get(result.row.metric, result.row.unit)}".rstrip(", "),
            *figures,
            *([_number(comparison.floor(result))] if floors else []),
            "" if ratio is None else f"{ratio:.2f}",
            str(result.row.target or ""),
            verdict,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _figure(result: RowResult, name: str) -> str:
    sample = result.typical(name)
    number = getattr(sample, result.row.metric) if sample else None
    return result.errors.get(name, "") if number is None else _number(number)


def _number(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if number >= 100 else f"{number:.2f}"


def cells(sample: Sample, unit: str = "") -> str:
    """One figure for each of COLUMNS; blank where there is no figure."""
    loaded = bool(sample.p50_us)
    figures = (
        f"{sample.rate:.0f}" if sample.rate else "",
        f"{sample.p50_us:.1f}" if loaded else "",
        f"{sample.p99_us:.1f}" if loaded else "",
        "" if sample.cpu_us is None else f"{sample.cpu_us:.2f}",
        f"{sample.kicks:.3f}" if loaded else "",
        f"{sample.calls:.3f}" if loaded else "",
        "" if sample.value is None else f"{sample.value:.2f} {unit}".rstrip(),
    )
    return "".join(f"{figure:>11}" for figure in figures).rstrip()


def _verdict(comparison: Comparison, result: RowResult) -> str:
    ratio, met = comparison.ratio(result), comparison.is_met(result)
    parts = [] if ratio is None else [f"{ratio:.2f}x the best peer"]
    if result.row.target is not None:
        parts.append(f"target {result.row.target}")
        parts += {True: ["met"], False: ["MISSED"], None: []}[met]
    return f": {', '.join(parts)}" if parts else ""


def chart(comparison: Comparison) -> str:
    """Bars of each row relative to the best peer, which is 1; shorter is better, for CPU as for
    time."""
    rows = [
        r for r in comparison.rows if comparison.ratio(r) is not None and r.row.metric != "value"
    ]
    names = comparison.contenders
    width = _LEFT + _WIDTH + 60
    height = 60 + len(rows) * (len(names) * _BAR + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
        '<g font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        *_legend(names),
    ]
    y = 46
    for result in rows:
        parts += _chart_row(comparison, result, y)
        y += len(names) * _BAR + _GAP
    return "\n".join([*parts, "</g></svg>"]) + "\n"


def _legend(names: tuple[str, ...]) -> Iterator[str]:
    yield (
        '<text x="10" y="16">Time or CPU of an operation to that of the best peer (1): '
        "shorter is better</text>"
    )
    for index, name in enumerate(names):
        x = 10 + index * 150
        yield f'<rect x="{x}" y="24" width="10" height="10" fill="{_colour(index)}"/>'
        yield f'<text x="{x + 14}" y="33">{escape(name)}</text>'


def _chart_row(comparison: Comparison, result: RowResult, y: int) -> Iterator[str]:
    costs = _costs(comparison, result)
    best = min((c for n, c in costs.items() if n != comparison.ours), default=0.0) or 1.0
    what = "CPU" if result.row.metric == "cpu_us" else "time"
    title = escape(f"{result.row.title} ({what})")
    yield f'<text x="{_LEFT - 8}" y="{y + _BAR}" text-anchor="end">{title}</text>'
    for index, name in enumerate(comparison.contenders):
        if name not in costs:
            continue
        share = costs[name] / best
        width = min(share, 3) / 3 * _WIDTH
        top = y + index * _BAR
        yield (
            f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR - 2}"'
            f' fill="{_colour(index)}"/>'
        )
        yield f'<text x="{_LEFT + width + 4:.1f}" y="{top + _BAR - 3}">{share:.2f}</text>'


def _costs(comparison: Comparison, result: RowResult) -> dict[str, float]:
    """The cost of an operation for each contender: its CPU, or its time."""
    costs = {}
    for name in comparison.contenders:
        sample = result.typical(name)
        number = getattr(sample, result.row.metric) if sample else None
        if number:
            costs[name] = 1 / number if result.row.more_is_better else number
    return costs


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]
