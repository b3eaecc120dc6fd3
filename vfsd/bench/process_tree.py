# SPDX-License-Identifier: Apache-2.0
"""The CPU time, wake-ups and memory of a process and all its descendants. Reads /proc only."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_GONE: Final = (FileNotFoundError, ProcessLookupError, psutil.Error)
_NAMES: Final = ("virtiofsd", "vfsd: ")


@dataclass(frozen=True)
class Use:
    """CPU time (nanoseconds) and context switches up to now, of every thread."""

    cpu_ns: int = 0
    switches: int = 0

    def __sub__(self, other: "Use") -> "Use":
        return Use(self.cpu_ns - other.cpu_ns, self.switches - other.switches)


class ProcessTree:
    """A process and its descendants. The descendants are looked up again by each method."""

    def __init__(self, root: int) -> None:
        self.root = root

    def pids(self) -> list[int]:
        found = [self.root]
        with suppress(*_GONE):
            found += [child.pid for child in psutil.Process(self.root).children(recursive=True)]
        return found

    def use(self) -> Use:
        cpu = switches = 0
        for task in self._tasks():
            with suppress(*_GONE):
                cpu += int((task / "schedstat").read_text().split()[0])
                switches += _switches((task / "status").read_text())
        return Use(cpu, switches)

    def pss_bytes(self) -> int:
        """Memory in bytes; memory that several processes share is divided among them."""
        total = 0
        for pid in self.pids():
            with suppress(*_GONE):
                total += _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss:") * 1024
        return total

    def pin(self, cpus: set[int]) -> None:
        """Restrict every thread to these CPUs."""
        for task in self._tasks():
            with suppress(*_GONE):
                os.sched_setaffinity(int(task.name), cpus)

    def _tasks(self) -> Iterator[Path]:
        for pid in self.pids():
            with suppress(*_GONE):
                yield from list(Path(f"/proc/{pid}/task").iterdir())


def daemon_tree(pid: int) -> ProcessTree | None:
    """The tree of the daemon of which `pid`, the listener, is a process; None if that is unclear.

    The listener may be one process of several, so go up as long as the parent also looks like a
    daemon of this kind.
    """
    process = _daemon(pid)
    if process is None:
        return None
    while parent := _daemon(process.ppid()):
        process = parent
    return ProcessTree(process.pid)


def _daemon(pid: int) -> psutil.Process | None:
    with suppress(*_GONE):
        process = psutil.Process(pid)
        line = " ".join(process.cmdline())
        if any(name in line for name in _NAMES) and pid != os.getpid():
            return process
    return None


def _switches(status: str) -> int:
    """The number of times a thread got a CPU after it had slept or waited for its turn."""
    lines = (line.split() for line in status.splitlines() if "_ctxt_switches:" in line)
    return sum(int(words[1]) for words in lines)


def _kilobytes(text: str, key: str) -> int:
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(key))
