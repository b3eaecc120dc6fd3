# SPDX-License-Identifier: Apache-2.0
"""scripts/chaos: work in a share while the processes of its daemon are killed.

A share is mounted with `vfsd mount`; all workloads run at the same time, while a killer kills at
random. When the time is over, the killer stops first, so that each workload can finish its round;
then the fds and processes of the daemon must be those from before.
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.waiting import HANG

from .guest import IN_GUEST, GuestShare
from .killer import Killer
from .memory_group import MemoryGroup, memory_group
from .probe import Probe
from .report import Report
from .roles import ROLES, SURVIVED
from .service import ServiceShare
from .share import Share
from .users import User
from .workloads import WORKLOADS

ROOT: Final = Path(__file__).resolve().parents[2]
QUEUES: Final = (1, 4)
FASTEST: Final = 50.0  # kills in a second


@dataclass(frozen=True)
class Plan:
    """One run. `hang`: seconds after which a workload that has not finished its round hangs."""

    queues: int
    seconds: float
    seed: int
    roles: Sequence[str] = SURVIVED
    workloads: Sequence[str] = tuple(WORKLOADS)
    fastest: float = FASTEST
    options: Sequence[str] = ()
    hang: float = HANG
    kind: type[Share] = Share


def run(plan: Plan) -> Report:
    """Carry out a plan. Leaves no process and no mount behind, also when it is interrupted."""
    report = Report(plan.queues, plan.seed, plan.seconds)
    with ExitStack() as stack:
        group = _memory_group(stack, report) if plan.kind is not ServiceShare else None
        users: list[User] = []
        stack.callback(_reap, users)
        share = stack.enter_context(plan.kind(plan.queues, plan.options, group))
        stack.callback(_kill, users)
        fds, titles = share.fds(), share.titles()
        probe = Probe(share.mount, share.looks)
        killer = Killer(share.name, plan.roles, plan.seed, plan.fastest, group, share.ends)
        with probe:
            with killer:
                users += share.work(plan.workloads, plan.seed, plan.seconds)
                _wait(plan.seconds, share, report)
            report.events = killer.events
            deadline = time.monotonic() + plan.hang
            for user in users:
                user.finish(deadline, report)
            report.stalls, report.looks = probe.stalls, probe.looks
        report.wrong += killer.errors + [f"the probe: {error}" for error in probe.errors]
        if not probe.join(plan.hang):
            report.wrong.append("a look-up of the probe hangs")
        if report.is_good:
            report.wrong += [f"left over: {what}" for what in share.left_over(fds, titles)]
            report.held_files = len(share.held())
        if not report.is_good:
            report.wrong.append(f"the log of the daemon is {_keep(share)}")
    return report


def _memory_group(stack: ExitStack, report: Report) -> MemoryGroup | None:
    made = stack.enter_context(memory_group())
    if isinstance(made, MemoryGroup):
        return made
    report.notes.append(f"not out of memory: {made}")
    return None


def _kill(users: list[User]) -> None:
    """Without the mount, a workload would write into the folder below it."""
    for user in users:
        user.kill()


def _reap(users: list[User]) -> None:
    for user in users:
        user.reap()


def _wait(seconds: float, share: Share, report: Report) -> None:
    """Wait; a daemon that ends is an error, and ends the wait."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if problem := share.problem():
            report.wrong.append(problem)
            return
        time.sleep(0.05)


def _keep(share: Share) -> Path:
    """Keep the log of the daemon."""
    kept = ROOT / "build" / "chaos" / f"{share.name}.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(share.output())
    return kept


def main(argv: list[str]) -> int:
    args = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    is_good = True
    for queues in args.queues:
        plan = Plan(
            queues,
            args.seconds / len(args.queues),
            args.seed,
            args.roles,
            args.workloads,
            args.fastest,
            args.option,
            kind=args.kind,
        )
        report = run(plan)
        is_good = is_good and report.is_good
        print(report.markdown(), end="\n\n", flush=True)
    return 0 if is_good else 1


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.split("\n")[0])
    parser.add_argument("seconds", nargs="?", type=float, default=60.0, help="in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31), help="run again")  # noqa: S311
    parser.add_argument(
        "--roles", type=_names(ROLES), default=SURVIVED, help="which processes die: a,b,c"
    )
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=tuple(WORKLOADS))
    parser.add_argument("--queues", type=lambda t: [int(n) for n in t.split(",")], default=QUEUES)
    parser.add_argument("--fastest", type=float, default=FASTEST, help="kills in a second")
    parser.add_argument("--option", action="append", default=[], help="of virtiofsd")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--service", dest="kind", action="store_const", const=ServiceShare, default=Share,
        help="the daemon is a service of systemd, which is also killed as a whole",
    )  # fmt: skip
    kinds.add_argument(
        "--guest", dest="kind", action="store_const", const=GuestShare,
        help="the users are in a guest of QEMU",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.kind is ServiceShare and args.option:
        parser.error("--option: the options of a service are in its file")
    if args.kind is GuestShare:
        args.workloads = [name for name in args.workloads if name in IN_GUEST]
    return args


def _names(table: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in table]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(table)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
