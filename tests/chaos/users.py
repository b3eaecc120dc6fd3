# SPDX-License-Identifier: Apache-2.0
"""The users of a share: processes that work in the share while a run lasts."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from tests.waiting import HANG

from .report import Report
from .workload import Failure, step_of

ROOT: Final = Path(__file__).resolve().parents[2]


class User(Protocol):
    """One or more users."""

    def finish(self, deadline: float, report: Report) -> None:
        """Wait for the end, and add the result to the report."""

    def kill(self) -> None:
        """Kill the users and their processes. A process that waits for the share ends when the
        share has ended."""

    def reap(self) -> None:
        """Kill the users, and wait until they have ended."""


def note(line: str, name: str, report: Report) -> None:
    """Add a line of the output of the workload `name` to the report."""
    try:
        content = json.loads(line)
        if "count" in content:
            report.counts[name] = content["count"]
            report.lost_files += content["lost"]
        else:
            report.failures.append(Failure(**content))
    except (ValueError, TypeError):
        report.wrong.append(f"{name}: {line}")


class Workload:
    """A workload that runs in a mount on this machine. `folder` has its output, and the step that
    is being done."""

    def __init__(
        self, name: str, folder: Path, mount: Path, host: Path, seed: int, seconds: float
    ) -> None:
        self._name = name
        self._step = folder / f"{name}.step"
        self._output = folder / f"{name}.out"
        arguments = [name, mount, host, seed, seconds, self._step]
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
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            report.wrong.append(f"{self._name} hangs in: {step_of(self._step)}")
            self.kill()
        for line in self._output.read_text(errors="replace").splitlines():
            note(line, self._name, report)
        if self._name not in report.counts and self._process.returncode >= 0:
            report.wrong.append(f"{self._name} ended with {self._process.returncode}")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def reap(self) -> None:
        self.kill()
        self._process.wait(HANG)
