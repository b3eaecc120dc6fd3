# SPDX-License-Identifier: Apache-2.0
"""`vfsd bench`: its command line."""

import argparse
import json
import os
import shlex
import socket as sockets
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from vfsd.bench.arena import Contender, measure
from vfsd.bench.compare import Comparison, ComparisonPlan, compare
from vfsd.bench.count import count_requests, counts_markdown, counts_table
from vfsd.bench.load import LoadSession, LoadShape
from vfsd.bench.load_ops import OPS, Op, Share, pages_of, set_plans
from vfsd.bench.process_tree import ProcessTree, daemon_tree
from vfsd.bench.real_work import Work, compare_real_work
from vfsd.bench.report import COLUMNS, cells, chart, markdown, table
from vfsd.bench.rows import ROWS, Row
from vfsd.frontend.vmm import connect
from vfsd.transport.errors import OperatorError
from vfsd.transport.option_types import REQUEST_QUEUES_MAX

SUMMARY: Final = "measure a virtio-fs back-end, or several against each other"
DEPTH_MAX: Final = 256
SECONDS_MAX: Final = 3600.0
ROUNDS_MAX: Final = 100
OURS: Final = "vfsd"

EPILOG: Final = (
    "vfsd bench SOCKET     any vhost-user virtio-fs socket; works in a new directory of the share\n"
    "vfsd bench --compare  our virtiofsd and each --peer, started for each row and round\n"
    "\noperations:\n"
    + "".join(f"  {op.name:<24}{op.summary}\n" for op in OPS.values())
    + "\nrows of --compare:\n"
    + "".join(f"  {row.name:<24}{row.title}\n" for row in ROWS.values())
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.usage = "vfsd bench (SOCKET | --compare) [options]"
    add = parser.add_argument
    add("paths", nargs="*", help=argparse.SUPPRESS)
    add("--op", metavar="LIST", default="getattr", help="operations, mixed evenly (getattr)")
    add("--depth", type=int, metavar="N", default=1, help="requests under way in each queue (1)")
    add("--queues", type=int, metavar="N", default=1, help="request queues (1)")
    add("--seconds", type=float, metavar="S", default=1.0, help="time of each measurement (1)")
    add("--poll", action="store_true", help="look for replies without pause instead of sleeping")
    add("--pid", type=int, metavar="PID", help="the back-end (default: the listener on SOCKET)")
    add("--json", metavar="FILE", help="also write the results to FILE")
    add("--compare", action="store_true", help="measure our virtiofsd and the peers")
    add("--rows", metavar="LIST", help="rows to compare (all)")
    add("--rounds", type=int, metavar="N", default=3, help="rounds to compare (3)")
    add(
        "--peer", action="append", metavar="NAME=COMMAND", default=[],
        help="a peer to compare with; {socket} and {dir} are filled in (none)",
    )  # fmt: skip
    add("--ours-args", metavar="ARGUMENTS", default="", help="further arguments for our virtiofsd")
    add("--dir", metavar="DIR", help="where to make the directories that are shared")
    add(
        "--real-work", action="store_true",
        help="also compare everyday commands and fio in a mount (needs root, takes minutes)",
    )  # fmt: skip
    add(
        "--count", action="store_true",
        help="count the requests of everyday commands in a mount instead (needs root)",
    )  # fmt: skip
    add("--chart", metavar="FILE", help="draw the comparison (SVG)")
    add("--markdown", metavar="FILE", help="write the comparison as a table in Markdown")


def run(options: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    _check(options)
    if options.compare:
        return _compare(options)
    return _bench(options)


def _check(options: argparse.Namespace) -> None:
    if options.passed_on:
        raise OperatorError("bench takes no arguments after --; see --ours-args", status=2)
    wanted = 0 if options.compare else 1
    if len(options.paths) != wanted:
        what = "bench --compare takes no SOCKET" if options.compare else "bench takes one SOCKET"
        raise OperatorError(f"{what}; see vfsd bench --help", status=2)
    _check_range(options.depth, "--depth", 1, DEPTH_MAX)
    _check_range(options.queues, "--queues", 1, REQUEST_QUEUES_MAX)
    _check_range(options.rounds, "--rounds", 1, ROUNDS_MAX)
    _check_range(options.seconds, "--seconds", 0.01, SECONDS_MAX)
    wants_compare = options.real_work or options.count or options.peer or options.rows
    if not options.compare and wants_compare:
        raise OperatorError("--real-work, --count, --peer and --rows need --compare", status=2)
    if options.count and (options.real_work or options.rows or options.chart):
        raise OperatorError("--count excludes --real-work, --rows and --chart", status=2)
    if options.chart is not None and not options.chart.endswith(".svg"):
        raise OperatorError("--chart: give a file name that ends with .svg", status=2)
    if options.dir is not None and not Path(options.dir).is_dir():
        raise OperatorError(f"--dir: '{options.dir}' is not a directory", status=2)


def _check_range(value: float, option: str, low: float, high: float) -> None:
    if not low <= value <= high:
        raise OperatorError(f"{option}: give a number from {low:g} to {high:g}", status=2)


def _chosen(names: str, table: dict[str, Any], option: str) -> list[Any]:
    chosen = names.split(",")
    for name in chosen:
        if name not in table:
            raise OperatorError(f"{option}: there is no '{name}'; see vfsd bench --help", status=2)
    return [table[name] for name in chosen]


# --- one socket ----------------------------------------------------------------------------------


def _bench(options: argparse.Namespace) -> int:
    ops: list[Op] = _chosen(options.op, OPS, "--op")
    path = options.paths[0]
    shape = LoadShape(options.depth, options.queues, options.poll, pages_of(ops))
    with connect(path) as vmm:
        tree = ProcessTree(options.pid) if options.pid else _listener(path, vmm.fileno())
        vmm.negotiate()
        vmm.check_queues(options.queues)
        with LoadSession(vmm, shape) as session, Share(session) as share:
            set_plans(share, ops)
            sample = measure(session, tree, options.seconds, None)
    print("".join(f"{column:>11}" for column in COLUMNS[:-1]))
    print(cells(sample))
    if options.json:
        _write(options.json, json.dumps(vars(sample), indent=2) + "\n")
    return 0


def _listener(path: str, fd: int) -> ProcessTree | None:
    """The processes of the daemon behind a socket; prints a line and returns None if they are
    unknown."""
    with sockets.socket(fileno=os.dup(fd)) as sock:
        size = struct.calcsize("iII")
        raw = sock.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, size)
    tree = daemon_tree(struct.unpack("iII", raw)[0])
    if tree is None:
        print(
            f"vfsd: no CPU figures: the daemon behind '{path}' is unknown; see --pid",
            file=sys.stderr,
        )
    return tree


# --- several -------------------------------------------------------------------------------------


def _compare(options: argparse.Namespace) -> int:
    rows: list[Row] = list(ROWS.values())
    if options.rows is not None:  # an empty list: only real work
        rows = _chosen(options.rows, ROWS, "--rows") if options.rows else []
    folder = None if options.dir is None else Path(options.dir)
    contenders = [_ours(options.ours_args), *_peers(options.peer)]
    if options.count:
        return _count(options, contenders, folder)
    plan = ComparisonPlan(contenders, rows, options.rounds, options.seconds, folder)
    comparison = compare(plan, _progress())
    if rows:
        print(table(comparison), end="")
    work = None
    if options.real_work:
        work = compare_real_work(
            Work(contenders, options.rounds, options.seconds, folder), _progress()
        )
        print("\n" + table(work), end="")
    _save(options, comparison, work)
    return 0


def _count(
    options: argparse.Namespace, contenders: Sequence[Contender], folder: Path | None
) -> int:
    counted = count_requests(contenders, folder, _progress())
    print(counts_table(counted), end="")
    if options.json:
        _write(options.json, json.dumps(vars(counted), indent=2) + "\n")
    if options.markdown:
        _write(options.markdown, counts_markdown(counted))
    return 0


def _save(options: argparse.Namespace, comparison: Comparison, work: Comparison | None) -> None:
    if options.json:
        content = comparison.as_json() | ({"real_work": work.as_json()} if work else {})
        _write(options.json, json.dumps(content, indent=2) + "\n")
    if options.chart:
        _write(options.chart, chart(comparison))
    if options.markdown:
        _write(options.markdown, markdown(comparison) + ("\n" + markdown(work) if work else ""))


def _write(path: str, content: str) -> None:
    try:
        Path(path).write_text(content)
    except OSError as error:
        raise OperatorError(f"cannot write '{path}': {error.strerror}") from None


def _progress() -> Callable[[str], object]:
    """A function that shows the text on a terminal; without a terminal it does nothing."""
    if not sys.stderr.isatty():
        return lambda _line: None
    return lambda line: print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def _ours(arguments: str) -> Contender:
    program = str(Path(sys.executable).parent / "virtiofsd")
    argv = (program, "--socket-path={socket}", "--shared-dir={dir}", *shlex.split(arguments))
    return Contender(OURS, argv, is_ours=True)


def _peers(given: Sequence[str]) -> list[Contender]:
    peers: list[Contender] = []
    for text in given:
        name, _, command = text.partition("=")
        if not name or "{socket}" not in command or "{dir}" not in command:
            raise OperatorError(
                f"--peer: '{text}' is not NAME=COMMAND with {{socket}} and {{dir}}", status=2
            )
        if name == OURS or name in [peer.name for peer in peers]:
            raise OperatorError(f"--peer: two peers have the name '{name}'", status=2)
        peers.append(Contender(name, tuple(shlex.split(command))))
    return peers
