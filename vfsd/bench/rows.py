# SPDX-License-Identifier: Apache-2.0
"""The rows of `vfsd bench --compare`: what each measures, and its target.

A row is measured for each contender in turn, each time in an arena of its own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vfsd.bench.arena import Arena, Cpus, RunningBackend, Sample, measure
from vfsd.bench.floor import Floor
from vfsd.bench.load import LoadShape, Plan
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
from vfsd.frontend.guest_memory import PAGE
from vfsd.transport.native import lib


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
