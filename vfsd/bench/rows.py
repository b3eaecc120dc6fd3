# SPDX-License-Identifier: Apache-2.0
"""What `vfsd bench` measures: one load against one socket, and the rows of `--compare`.

A row is measured for each contender in turn. So a row starts its back-end, does its work and ends
the back-end again, and no measurement leaves anything behind for the next.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vfsd.bench.floor import Floor
from vfsd.bench.load import PAGE, LoadResult, LoadSession, LoadShape, Plan
from vfsd.bench.load_ops import (
    CACHED_BYTES,
    COLD_BYTES,
    DIRENT,
    ENTRY,
    LISTED,
    MANY,
    OPS,
    Op,
    Share,
    cold_file,
    fsync_plan,
    pages_of,
    read_plan,
    set_plans,
)
from vfsd.bench.process_tree import ProcessTree
from vfsd.frontend.backend_process import START_SECONDS, end
from vfsd.frontend.vmm import connect
from vfsd.transport.errors import OperatorError
from vfsd.transport.native import lib

LISTENING: Final = "00010000"  # __SO_ACCEPTCON in /proc/net/unix
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
        end(process)


def _wait_listening(process: subprocess.Popen[bytes], socket: Path, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_listening(socket):
        if (status := process.poll()) is not None:
            last = log_path.read_text(errors="replace").strip().splitlines()[-1:]
            raise OperatorError(f"a back-end ended with {status} before it listened: {last}")
        if time.monotonic() > deadline:
            raise OperatorError(f"a back-end does not listen after {START_SECONDS:.0f} seconds")
        time.sleep(0.002)


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


# --- the rows ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The target for ours: `ratio` to the best peer, or an absolute `value`."""

    limit: float
    at_least: bool = False
    absolute: bool = False

    def is_met(self, number: float) -> bool:
        return number >= self.limit if self.at_least else number <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}{'' if self.absolute else 'x'}"


@dataclass(frozen=True)
class Row:
    """One row of the table. `metric`: the field of Sample that the row compares."""

    name: str
    title: str
    metric: str
    run: Callable[[Arena], Sample]
    target: Target | None = None
    floor: Floor | None = None
    block: int = PAGE
    ours_only: bool = False
    unit: str = ""  # the unit of `value`

    @property
    def more_is_better(self) -> bool:
        return self.metric == "rate"

    @property
    def in_memory(self) -> bool:
        return self.name in OPS and OPS[self.name].in_memory


def _load(op_name: str, shape: LoadShape) -> Callable[[Arena], Sample]:
    op = OPS[op_name]

    def run(arena: Arena) -> Sample:
        with arena.backend(op.options, in_memory=op.in_memory) as backend:
            return _measure_op(arena, backend, op, shape, Cpus.apart())

    return run


def _measure_op(
    arena: Arena, backend: RunningBackend, op: Op, shape: LoadShape, cpus: Cpus
) -> Sample:
    shape = LoadShape(shape.depth, shape.queues, shape.poll, pages_of([op]))
    with arena.session(backend, shape) as session, Share(session) as share:
        set_plans(share, [op])
        return measure(session, backend.tree, arena.seconds, cpus)


def _beside(plan_of: Callable[[Share], Plan]) -> Callable[[Arena], Sample]:
    """The p99 of GETATTR beside a stream of slow requests, relative to the p99 without that
    stream."""

    def run(arena: Arena) -> Sample:
        with arena.backend(("allow_direct_io",)) as backend:
            shape = LoadShape(depth=2, pages=256)
            with arena.session(backend, shape) as session, Share(session) as share:
                fast = OPS["getattr"].plan_of(share)(0)
                slow = plan_of(share)
                session.set_plan(0, 0, fast)
                session.set_plan(0, 1, Plan([]))
                idle = measure(session, backend.tree, arena.seconds, Cpus.apart())
                session.set_plan(0, 1, slow)
                busy = measure(session, backend.tree, arena.seconds, Cpus.apart())
        return Sample(**{**vars(busy), "value": busy.p99_us / max(idle.p99_us, 1e-3)})

    return run


def _slow_fsync(share: Share) -> Plan:
    plan = fsync_plan(share.new_file(CACHED_BYTES)[1], 128 << 10)
    return Plan(plan.steps, block=plan.block, blocks=plan.blocks, measured=False)


def _slow_read(share: Share) -> Plan:
    plan = read_plan(cold_file(share), 1 << 20, COLD_BYTES)
    return Plan(plan.steps, block=plan.block, blocks=plan.blocks, measured=False)


def _two_queues(arena: Arena) -> Sample:
    """The CPU of an operation with two queues on two CPUs, relative to one queue of the same
    depth."""
    samples = []
    for shape in (LoadShape(depth=32), LoadShape(depth=16, queues=2)):
        with arena.backend() as backend:
            samples.append(_measure_op(arena, backend, OPS["getattr"], shape, Cpus.anywhere()))
    one, two = samples
    return Sample(**{**vars(two), "value": (two.cpu_us or 0) / (one.cpu_us or 1)})


def _one_cpu(arena: Arena) -> Sample:
    """Operations with back-end and driver on one CPU: with polling when it seems worth it, relative
    to no polling."""
    samples = []
    for poll in ("auto", "0"):
        with arena.backend(extra=[f"--poll-us={poll}"]) as backend:
            shape = LoadShape()
            samples.append(_measure_op(arena, backend, OPS["getattr"], shape, Cpus.together()))
    auto, never = samples
    return Sample(**{**vars(auto), "value": auto.rate / never.rate})


def _idle(arena: Arena) -> Sample:
    """Wake-ups of all processes while no request arrives."""
    with arena.backend() as backend, arena.session(backend, LoadShape()):
        time.sleep(1)
        before = backend.tree.use()
        time.sleep(arena.idle_seconds)
        used = backend.tree.use() - before
    return Sample(value=used.switches, cpu_us=used.cpu_ns / 1000)


def _memory(queues: int) -> Callable[[Arena], Sample]:
    def run(arena: Arena) -> Sample:
        sizes = []
        for count in {1, queues}:
            shape = LoadShape(depth=32, queues=count)
            with (
                arena.backend() as backend,
                arena.session(backend, shape) as session,
                Share(session) as share,
            ):
                set_plans(share, [OPS["getattr"]])
                session.run(0.05)
                sizes.append(backend.tree.pss_bytes() / (1 << 20))
        value = sizes[0] if queues == 1 else (max(sizes) - min(sizes)) / (queues - 1)
        return Sample(value=value)

    return run


def _start(arena: Arena) -> Sample:
    with arena.backend() as backend:
        return Sample(value=backend.start_seconds * 1000)


def _cpu(op: str, title: str, limit: float | None, floor: Floor | None = None, block: int = PAGE,
         depth: int = 32) -> Row:  # fmt: skip
    target = None if limit is None else Target(limit)
    shape = LoadShape(depth=depth)
    return Row(op, title, "cpu_us", _load(op, shape), target, floor, block)


def _single(op: str, title: str) -> Row:
    target = Target(3, at_least=True)
    return Row(f"{op}-1", f"{title}, depth 1", "rate", _load(op, LoadShape()), target)


def _listing(op: str, title: str, block: int) -> Row:
    entry = ENTRY + DIRENT
    return _cpu(op, title, 0.5, Floor(lib.FLOOR_LIST, entry / block, LISTED), block, depth=2)


_ROWS: Final = (
    _cpu("null", "no operation", None, Floor(lib.FLOOR_NOTHING, 0)),
    _cpu("getattr", "GETATTR", 0.6, Floor(lib.FLOOR_STAT)),
    _cpu("lookup", "LOOKUP, inode known", 0.4, Floor(lib.FLOOR_LOOKUP)),
    _cpu("lookup-new", "LOOKUP, inode new", 0.6, Floor(lib.FLOOR_LOOKUP, names=MANY)),
    _cpu("lookup-nothing", "LOOKUP of nothing", 0.6, Floor(lib.FLOOR_MISSING)),
    _cpu("open", "OPEN + RELEASE", 0.6, Floor(lib.FLOOR_OPEN, 2)),
    _cpu("create", "CREATE + RELEASE + UNLINK", 0.5, Floor(lib.FLOOR_CREATE, 3)),
    _cpu("create-user", "the same, uid 1000", 0.5, Floor(lib.FLOOR_CREATE, 3)),
    _cpu("mkdir", "MKDIR + RMDIR", 0.5, Floor(lib.FLOOR_MKDIR, 2)),
    _cpu("mkdir-user", "the same, uid 1000", 0.5, Floor(lib.FLOOR_MKDIR, 2)),
    _cpu("getxattr", "GETXATTR", 0.6, Floor(lib.FLOOR_GETXATTR)),
    _cpu("read-4k", "READ 4 KiB", 0.6, Floor(lib.FLOOR_READ)),
    _cpu("read-128k", "READ 128 KiB", 0.9, Floor(lib.FLOOR_READ), 128 << 10),
    _cpu("read-1m", "READ 1 MiB", 0.9, Floor(lib.FLOOR_READ), 1 << 20),
    _cpu("write-4k", "WRITE 4 KiB", 0.9, Floor(lib.FLOOR_WRITE)),
    _cpu("write-128k", "WRITE 128 KiB", 0.9, Floor(lib.FLOOR_WRITE), 128 << 10),
    _cpu("write-1m", "WRITE 1 MiB", 0.9, Floor(lib.FLOOR_WRITE), 1 << 20),
    _listing("readdirplus-4k", "READDIRPLUS, an entry, 4 KiB", PAGE),
    _listing("readdirplus-128k", "READDIRPLUS, an entry, 128 KiB", 128 << 10),
    _listing("readdirplus-cold-4k", "the same, new, 4 KiB", PAGE),
    _listing("readdirplus-cold-128k", "the same, new, 128 KiB", 128 << 10),
    _single("getattr", "GETATTR"),
    _single("lookup", "LOOKUP"),
    _single("read-4k", "READ 4 KiB"),
    Row("read-cold", "READ 4 KiB from disk, depth 32", "rate",
        _load("read-cold", LoadShape(depth=32)), Target(2, at_least=True)),
    Row("beside-fsync", "p99 of GETATTR beside fsync, to idle", "value", _beside(_slow_fsync),
        Target(3, absolute=True), unit="x"),
    Row("beside-read", "p99 of GETATTR beside a cold 1 MiB READ", "value", _beside(_slow_read),
        Target(3, absolute=True), unit="x"),
    Row("two-queues", "CPU/op, 2 queues on 2 CPUs to 1 queue", "value", _two_queues,
        Target(1.15, absolute=True), ours_only=True, unit="x"),
    Row("one-cpu", "everything on one CPU: polling auto to off", "value", _one_cpu,
        Target(0.95, at_least=True, absolute=True), ours_only=True, unit="x"),
    Row("idle", "wake-ups of an idle back-end", "value", _idle, Target(0, absolute=True)),
    Row("memory", "memory (PSS), 1 queue", "value", _memory(1), Target(32, absolute=True),
        unit="MiB"),
    Row("memory-queue", "memory (PSS), each further queue", "value", _memory(3),
        Target(4, absolute=True), ours_only=True, unit="MiB"),
    Row("start", "exec to listening", "value", _start, Target(200, absolute=True), unit="ms"),
)  # fmt: skip
ROWS: Final = {row.name: row for row in _ROWS}
