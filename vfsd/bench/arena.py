# SPDX-License-Identifier: Apache-2.0
"""Where `vfsd bench` measures: a back-end on a new directory, and one load against its socket.

A back-end is started for each measurement and ended after it, so no measurement leaves anything
behind for the next.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vfsd.bench.load import LoadResult, LoadSession, LoadShape
from vfsd.bench.process_tree import ProcessTree
from vfsd.frontend.slow_wait import SlowWait
from vfsd.frontend.vmm import connect
from vfsd.transport.errors import OperatorError

LISTENING: Final = "00010000"  # __SO_ACCEPTCON in /proc/net/unix
STOP_SECONDS: Final = 5.0  # a measured back-end is killed then, which changes no figure
STEP_SECONDS: Final = 0.002
WARM_UP: Final = 0.2  # as a fraction of the measured time
MEMORY: Final = Path("/dev/shm")


class NotOfferedError(Exception):
    """The contender does not offer what the row measures."""


@dataclass(frozen=True)
class Sample:
    """One measurement. `value` is the figure of a row that compares none of the other fields."""

    rate: float = 0.0  # operations per second
    p50_us: float = 0.0
    p99_us: float = 0.0
    cpu_us: float | None = None  # of the back-end, per operation; None: unknown
    kicks: float = 0.0  # per operation
    calls: float = 0.0
    value: float | None = None


@dataclass(frozen=True)
class Cpus:
    """The CPUs on which the back-end and the driver run."""

    daemon: frozenset[int]
    driver: frozenset[int]

    @classmethod
    def apart(cls) -> "Cpus":
        """One CPU for each if there are two."""
        found = sorted(os.sched_getaffinity(0))
        return cls(frozenset(found[:1]), frozenset(found[-1:]))

    @classmethod
    def together(cls) -> "Cpus":
        return cls(frozenset(sorted(os.sched_getaffinity(0))[:1]), cls.apart().daemon)

    @classmethod
    def anywhere(cls) -> "Cpus":
        found = frozenset(os.sched_getaffinity(0))
        return cls(found, found)


@dataclass(frozen=True)
class Contender:
    """A back-end to measure: its command line, in which {socket} and {dir} are replaced."""

    name: str
    argv: tuple[str, ...]
    is_ours: bool = False

    def command(self, socket: Path, shared_dir: Path, options: Sequence[str]) -> list[str]:
        filled = [
            part.replace("{socket}", str(socket)).replace("{dir}", str(shared_dir))
            for part in self.argv
        ]
        return filled + [part for option in options for part in ("-o", option)]


def memory_or(folder: Path | None) -> Path | None:
    """A folder in memory if there is such a folder, else `folder`."""
    return MEMORY if MEMORY.is_dir() else folder


@dataclass(frozen=True)
class RunningBackend:
    """A running back-end."""

    socket: Path
    tree: ProcessTree
    start_seconds: float  # from exec until it listens


@dataclass(frozen=True)
class Arena:
    """Where and for how long one contender is measured."""

    contender: Contender
    folder: Path | None  # None: the system's folder for temporary files
    seconds: float
    idle_seconds: float = 10.0

    @contextmanager
    def backend(
        self, options: Sequence[str] = (), extra: Sequence[str] = (), in_memory: bool = False
    ) -> Iterator[RunningBackend]:
        """Start the contender on a new directory. `options` go after -o, `extra` are added
        unchanged."""
        folder = memory_or(self.folder) if in_memory else self.folder
        with tempfile.TemporaryDirectory(prefix="vfsd-bench-", dir=folder) as name:
            top = Path(name)
            top.chmod(0o755)
            (top / "dir").mkdir()
            command = self.contender.command(top / "socket", top / "dir", options)
            with _running([*command, *extra], top / "socket", top / "log") as backend:
                yield backend

    @contextmanager
    def session(self, backend: RunningBackend, shape: LoadShape) -> Iterator[LoadSession]:
        with connect(str(backend.socket)) as vmm:
            vmm.negotiate()
            if shape.queues >= vmm.queues_offered:
                raise NotOfferedError
            with LoadSession(vmm, shape) as session:
                yield session


@contextmanager
def _running(command: Sequence[str], socket: Path, log_path: Path) -> Iterator[RunningBackend]:
    start = time.monotonic()
    with log_path.open("wb") as log:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        except OSError as error:
            raise OperatorError(f"cannot start '{command[0]}': {error.strerror}") from None
    try:
        _wait_listening(process, socket, log_path)
        yield RunningBackend(socket, ProcessTree(process.pid), time.monotonic() - start)
    finally:
        _end(process)


def _wait_listening(process: subprocess.Popen[bytes], socket: Path, log_path: Path) -> None:
    wait = SlowWait(f"the back-end, process {process.pid}, does not listen yet")
    while not _is_listening(socket):
        if (status := process.poll()) is not None:
            last = log_path.read_text(errors="replace").strip().splitlines()[-1:]
            raise OperatorError(f"a back-end ended with {status} before it listened: {last}")
        time.sleep(wait.rest(STEP_SECONDS))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a back-end to end, and kill it if it does not end."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_listening(socket: Path) -> bool:
    """Checked without connecting: some back-ends accept one connection only, which this would use
    up."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(socket) and fields[3] == LISTENING:
            return True
    return False


# --- one load ------------------------------------------------------------------------------------


def measure(
    session: LoadSession, tree: ProcessTree | None, seconds: float, cpus: Cpus | None
) -> Sample:
    """Run the planned load: briefly to warm up, then for `seconds`."""
    if tree and cpus:
        tree.pin(set(cpus.daemon))
    driver = set(cpus.driver) if cpus else None
    session.run(seconds * WARM_UP, driver)
    before = tree.use() if tree else None
    outcome = session.run(seconds, driver)
    cpu_ns = (tree.use() - before).cpu_ns if tree and before else None
    return _sample(outcome, cpu_ns)


def _sample(outcome: LoadResult, cpu_ns: int | None) -> Sample:
    units = max(1, outcome.units)
    return Sample(
        rate=outcome.units / max(outcome.seconds, 1e-9),
        p50_us=outcome.percentile_us(0.5),
        p99_us=outcome.percentile_us(0.99),
        cpu_us=None if cpu_ns is None else cpu_ns / 1000 / units,
        kicks=outcome.kicks / units,
        calls=outcome.calls / units,
    )
