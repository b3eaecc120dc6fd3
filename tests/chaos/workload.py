# SPDX-License-Identifier: Apache-2.0
"""A workload: a process that works in a folder of the mount, round after round, and writes down
each failure.

    python -m tests.chaos.workload NAME MOUNT HOST SEED SECONDS STEP

A workload is a process of its own, because a process that waits for a mount that hangs cannot be
ended. STEP is a file in which the workload names what it does at the moment. Each line of its
output is a JSON object: a Failure, or at the end {"count": steps, "lost": files}.
"""

import errno
import json
import mmap
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

FAILURES_MAX: Final = 10
LOST_LOCK: Final = "lock lost"
STEP_BYTES: Final = 4096


class LostLockError(Exception):
    """A lock was held by two processes at a time."""


@dataclass(frozen=True)
class Failure:
    """What a user of the share has seen at `at` (seconds, monotonic) and should not have seen."""

    at: float
    workload: str
    op: str
    path: str
    error: str  # the name of the errno, LOST_LOCK, or "" if another result was wrong
    text: str


class Steps:
    """What a workload does at the moment, and how many steps it has done."""

    def __init__(self, workload: str, page: Path | None = None) -> None:
        self.workload = workload
        self.op = self.path = ""
        self.count = 0
        self.lost = 0  # open files without a name that were lost together with a sandbox
        self._page: mmap.mmap | None = None
        if page:
            page.write_bytes(bytes(STEP_BYTES))
            with page.open("r+b") as file:
                self._page = mmap.mmap(file.fileno(), STEP_BYTES)

    def next(self, op: str, path: object = "") -> None:
        self.op, self.path = op, str(path)
        self.count += 1
        if self._page:
            text = f"{op} {path}".encode()[: STEP_BYTES - 1]
            self._page[: len(text) + 1] = text + b"\0"

    def failure(self, error: Exception) -> Failure:
        number = error.errno if isinstance(error, OSError) else None
        name = errno.errorcode.get(number, str(number)) if number else ""
        if isinstance(error, LostLockError):
            name = LOST_LOCK
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, subprocess.CalledProcessError):
            text = f"{error}: {error.output}"
        return Failure(time.monotonic(), self.workload, self.op, self.path, name, text[-2000:])


def step_of(page: Path) -> str:
    """What the workload that writes to `page` does at the moment."""
    return page.read_bytes().split(b"\0", maxsplit=1)[0].decode(errors="replace")


def main(argv: list[str]) -> None:
    from .workloads import WORKLOADS  # noqa: PLC0415 - this module is imported there

    name, mount, host, seed, seconds, page = argv
    until = time.monotonic() + float(seconds)
    steps, failures, number = Steps(name, Path(page)), 0, 0
    while time.monotonic() < until and failures < FAILURES_MAX:
        folder = f"{name}-{number}"
        home = Path(mount) / folder
        chance = random.Random(f"{seed} {folder}")  # noqa: S311
        try:
            steps.next("mkdir", home)
            home.mkdir()
            WORKLOADS[name](steps, home, Path(host) / folder, chance, until)
            steps.next("rmtree", home)
            shutil.rmtree(home)
        except Exception as error:  # each failure is reported, and the next round begins
            print(json.dumps(asdict(steps.failure(error))), flush=True)
            failures += 1
        number += 1
    print(json.dumps({"count": steps.count, "lost": steps.lost}), flush=True)


if __name__ == "__main__":
    from tests.chaos import workload  # not this module: workloads.py imports the other

    workload.main(sys.argv[1:])
