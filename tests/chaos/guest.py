# SPDX-License-Identifier: Apache-2.0
"""A share whose users are in a guest of QEMU, with another kernel and driver than this machine."""

import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from guest import machine

from tests.waiting import HANG

from .report import Report
from .share import Share
from .users import ROOT, User, note

# Of the workloads those that need no program which the guest lacks.
IN_GUEST: Final = ("tree", "file", "fcntl", "flock")
TAG: Final = "chaos"
PROGRAMS: Final = "file-programs"  # a folder of the share; see _SHARED in share.py
MODULES: Final = ("waiting.py", "chaos", "semantics")
BOOT: Final = machine.Hardware(cpus=2)
# Each workload has the share as its mount and as its host. Outputs and steps are outside.
SCRIPT: Final = """
cd {mount}/{programs}; mkdir -p /tmp/chaos
export PYTHONDONTWRITEBYTECODE=1
for name in {names}; do
    python3 -m tests.chaos.workload $name {mount} {mount} {seed} {seconds} /tmp/chaos/$name.step \
        >/tmp/chaos/$name.out 2>&1 &
done
wait
cd /; for name in {names}; do sed "s/^/$name /" /tmp/chaos/$name.out; done
"""


class GuestShare(Share):
    """As Share, with the mount in a guest. No probe can reach that mount."""

    looks = 0

    def _attach(self, queues: int, socket: Path) -> None:
        self._copy_programs()
        device = machine.Share(socket, TAG, queues)
        self.machine = self._stack.enter_context(machine.boot([device], BOOT))
        self.machine.mount(TAG)
        self.mount = self.host

    def _copy_programs(self) -> None:
        target = self.host / PROGRAMS / "tests"
        target.mkdir(parents=True)
        unwanted = shutil.ignore_patterns("__pycache__")
        for name in MODULES:
            path = ROOT / "tests" / name
            if path.is_dir():
                shutil.copytree(path, target / name, ignore=unwanted)
            else:
                shutil.copy(path, target)

    def work(self, names: Sequence[str], seed: int, seconds: float) -> Sequence[User]:
        return [GuestUsers(self.machine, names, seed, seconds)]

    def problem(self) -> str:
        if not self.is_served():
            return "the daemon ended"
        return "" if self.machine.process.poll() is None else "QEMU ended"


class GuestUsers:
    """Workloads in a guest. A thread waits for the script that runs them."""

    def __init__(
        self, booted: machine.Machine, names: Sequence[str], seed: int, seconds: float
    ) -> None:
        self._machine = booted
        self._output = ""
        self._error = ""
        script = SCRIPT.format(
            mount="/mnt", programs=PROGRAMS, names=" ".join(names), seed=seed, seconds=seconds
        )
        self._thread = threading.Thread(target=self._run, args=(script, seconds + HANG))
        self._names = names
        self._thread.start()

    def _run(self, script: str, seconds: float) -> None:
        try:
            self._output = self._machine.check(script, seconds)
        except machine.GuestError as error:
            self._error = str(error)

    def finish(self, deadline: float, report: Report) -> None:
        del deadline  # the script has its own
        self._thread.join()
        if self._error:
            report.wrong.append(self._error)
        for line in self._output.splitlines():
            name, _, text = line.partition(" ")
            note(text, name, report)
        report.wrong += [f"{n} has no result" for n in self._names if n not in report.counts]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._machine.process.kill()

    def reap(self) -> None:
        self.kill()
        self._thread.join()
