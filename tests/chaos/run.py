# SPDX-License-Identifier: Apache-2.0
"""scripts/chaos: work in a share while the processes of its daemon are killed.

A share is mounted with `vfsd mount`; all workloads run at the same time, while a killer kills at
random. When the time is over, the killer stops first, so that each workload can finish its round;
then the fds and processes of the daemon must be those from before.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.waiting import HANG

from .killer import Killer
from .memory_group import MemoryGroup, memory_group
from .probe import Probe
from .report import Report
from .roles import ROLES, SURVIVED
from .share import Share
from .workload import Failure, step_of
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


class Workload:
    """A running workload."""

    def __init__(self, name: str, plan: Plan, share: Share) -> None:
        self.name = name
        self._step = share.folder / f"{name}.step"
        self._output = share.folder / f"{name}.out"
        arguments = [name, share.mount, share.host, plan.seed, plan.seconds, self._step]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.workload", *map(str, arguments)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def finish(self, deadline: float, report: Report) -> None:
        """Wait for the end, and add the result to the report."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            report.wrong.append(f"{self.name} hangs in: {step_of(self._step)}")
            self.kill()
        for line in self._output.read_text(errors="replace").splitlines():
            self._note(line, report)
        if self.name not in report.counts and self._process.returncode >= 0:
            report.wrong.append(f"{self.name} ended with {self._process.returncode}")

    def _note(self, line: str, report: Report) -> None:
        try:
            content = json.loads(line)
            if "count" in content:
                report.counts[self.name] = content["count"]
                report.lost_files += content["lost"]
            else:
                report.failures.append(Failure(**content))
        except (ValueError, TypeError):
            report.wrong.append(f"{self.name}: {line}")

    def kill(self) -> None:
        """Kill the workload and its processes. A process that waits for the mount ends when the
        mount has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def reap(self) -> None:
        self.kill()
        self._process.wait(HANG)


def run(plan: Plan) -> Report:
    """Carry out a plan. Leaves no process and no mount behind, also when it is interrupted."""
    report = Report(plan.queues, plan.seed, plan.seconds)
    with ExitStack() as stack:
        made = stack.enter_context(memory_group())
        group = made if isinstance(made, MemoryGroup) else None
        if isinstance(made, str):
            report.notes.append(f"not out of memory: {made}")
        workloads: list[Workload] = []
        stack.callback(_reap, workloads)
        share = stack.enter_context(Share(plan.queues, plan.options, group))
        stack.callback(_kill, workloads)
        with suppress(FileNotFoundError):
            (share.mount / "missing").stat()
        fds, titles = share.fds(), share.titles()
        probe = Probe(share.mount, plan.queues)
        killer = Killer(share.name, plan.roles, plan.seed, plan.fastest, group)
        with probe:
            with killer:
                workloads += [Workload(name, plan, share) for name in plan.workloads]
                _wait(plan.seconds, share, report)
            report.events = killer.events
            deadline = time.monotonic() + plan.hang
            for workload in workloads:
                workload.finish(deadline, report)
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


def _kill(workloads: list[Workload]) -> None:
    """Without the mount, a workload would write into the folder below it."""
    for workload in workloads:
        workload.kill()


def _reap(workloads: list[Workload]) -> None:
    for workload in workloads:
        workload.reap()


def _wait(seconds: float, share: Share, report: Report) -> None:
    """Wait; a daemon that ends is an error, and ends the wait."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not share.is_served():
            report.wrong.append("the daemon ended")
            return
        if share.mounted.process.poll() is not None:
            report.wrong.append(f"vfsd mount ended: {share.mounted.errors()}")
            return
        time.sleep(0.05)


def _keep(share: Share) -> Path:
    """Keep the log of the daemon."""
    kept = ROOT / "build" / "chaos" / f"{share.name}.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(share.log.read_bytes())
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
    return parser.parse_args(argv)


def _names(table: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in table]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(table)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
