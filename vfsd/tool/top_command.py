# SPDX-License-Identifier: Apache-2.0
"""`vfsd top`: what a guest asks for at the moment, and how long the answers take."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from vfsd.tool import instance_options as common
from vfsd.tool.top_load import Loads, loads

SUMMARY: Final = (
    "show the requests of a guest: rates, bytes and latencies of operations and workers"
)
INTERVAL: Final = 1.0  # seconds
INTERVAL_MIN: Final = 0.1
_SCREEN: Final = "\033[?1049h\033[?25l"  # another screen, without a cursor
_LEAVE: Final = "\033[?25h\033[?1049l"
_HOME: Final = "\033[H"
_REST_OF_LINE: Final = "\033[K"
_REST_OF_SCREEN: Final = "\033[J"


def add_options(parser: argparse.ArgumentParser) -> None:
    common.add_common(parser)
    common.add_json(parser)
    parser.add_argument("--once", action="store_true", help="show one interval and end")
    parser.add_argument(
        "--interval", type=float, metavar="S", default=INTERVAL,
        help=f"seconds between two looks ({INTERVAL:g})",
    )  # fmt: skip
    common.add_optional_instance(parser)


def run(options: argparse.Namespace) -> int:
    """Show until SIGINT, or once."""
    options.interval = max(INTERVAL_MIN, options.interval)
    instance = common.chosen(options)
    is_live = not options.once and not options.json and sys.stdout.isatty()
    if is_live:
        print(_SCREEN, end="")
    try:
        with common.connected(options, instance) as client:
            before = client.counters()
            while True:
                time.sleep(options.interval)
                after = client.counters()
                _show(instance.name, loads(before, after), options, is_live)
                if options.once:
                    return 0
                before = after
    except KeyboardInterrupt:
        return 0
    finally:
        if is_live:
            print(_LEAVE, end="", flush=True)


def _show(name: str, found: Loads, options: argparse.Namespace, is_live: bool) -> None:
    if options.json:
        common.print_json({"name": name, **common.as_json(found)})
    elif is_live:
        body = "".join(f"{line}{_REST_OF_LINE}\n" for line in lines(name, found))
        print(_HOME + body + _REST_OF_SCREEN, end="", flush=True)
    else:
        print(*lines(name, found), sep="\n", flush=True)


def lines(name: str, found: Loads) -> Iterator[str]:
    """The report for people, at most 80 columns wide."""
    total = sum(op.rate for op in found.ops)
    megabytes = sum(op.bytes_per_second for op in found.ops) / (1 << 20)
    yield f"{name}: {total:.0f} ops/s, {megabytes:.1f} MiB/s, over {found.seconds:.1f} s"
    yield ""
    heads = ("OPERATION", "OPS/S", "ERRORS/S", "MIB/S", "MEAN", "P50", "P99")
    rows = [(op.op, *_numbers(op)) for op in found.ops if op.rate]
    yield from common.columns([heads, *rows], 1)
    yield ""
    heads = ("WORKER", "OPS/S", "ERRORS/S", "MIB/S", "MEAN", "P50", "P99")
    busy = [worker for worker in found.workers if worker.rate]
    yield from common.columns([heads, *((f"worker {w.slot}", *_numbers(w)) for w in busy)], 1)
    yield ""
    heads = ("QUEUE", "WORKER", "REQUESTS/S", "BATCHES/S", "KICKS/S", "CALLS/S", "BAD")
    yield from common.columns(
        [
            heads,
            *(
                (
                    f"queue {queue.index}" if queue.index else "hiprio",
                    str(queue.slot),
                    *(f"{rate:.0f}" for rate in (queue.requests, queue.batches, queue.kicks)),
                    f"{queue.calls:.0f}",
                    str(queue.bad_chains),
                )
                for queue in found.queues
            ),
        ],
        1,
    )


def _numbers(row: Any) -> tuple[str, ...]:
    return (
        f"{row.rate:.0f}",
        f"{row.error_rate:.0f}",
        f"{row.bytes_per_second / (1 << 20):.1f}",
        _time(row.mean_ns),
        _time(row.p50_ns),
        _time(row.p99_ns),
    )


def _time(ns: float | None) -> str:
    """A time with its unit; "-" if there was no request."""
    if ns is None:
        return "-"
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.0f} ns"
