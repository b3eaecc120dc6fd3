# SPDX-License-Identifier: Apache-2.0
"""Rates and latencies from two looks at the counters of a daemon.

A counter that is smaller than before belongs to another sandbox, whose counters began at zero: all
of its value is new. Latencies are known up to a factor of two: p50 and p99 are upper limits, the
upper end of the bucket in which the request is that half, or 99 of 100, do not exceed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from vfsd.control.model import Counters, OpCounters, QueueCounters, WorkerCounters

BUCKET_NS: Final = 256


class CountersRow(Protocol):
    """The fields that OpCounters and WorkerCounters have in common."""

    @property
    def count(self) -> int: ...
    @property
    def errors(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def ns(self) -> int: ...
    @property
    def latency(self) -> list[int]: ...


@dataclass(frozen=True)
class Load:
    """Of requests in an interval, per second. The times are None if there was no request."""

    rate: float
    error_rate: float
    bytes_per_second: float
    mean_ns: float | None
    p50_ns: float | None
    p99_ns: float | None


@dataclass(frozen=True)
class OpLoad(Load):
    op: str


@dataclass(frozen=True)
class WorkerLoad(Load):
    """`sleeps`: how often per second the worker waited for a wake-up."""

    slot: int
    sleeps: float


@dataclass(frozen=True)
class QueueLoad:
    """Of one queue, per second; `bad_chains`: since the sandbox was started."""

    index: int
    slot: int
    requests: float
    batches: float
    kicks: float
    calls: float
    bad_chains: int


@dataclass(frozen=True)
class Loads:
    """Of an interval of `seconds`; the operation that took most time is the first."""

    seconds: float
    ops: list[OpLoad]
    workers: list[WorkerLoad]
    queues: list[QueueLoad]


def loads(before: Counters, after: Counters) -> Loads:
    seconds = max(1e-6, (after.ns - before.ns) / 1e9)
    old_ops = {op.op: op for op in before.ops}
    old_workers = {worker.slot: worker for worker in before.workers}
    old_queues = {queue.index: queue for queue in before.queues}
    ops = [_op(old_ops.get(op.op), op, seconds) for op in after.ops]
    ops.sort(key=lambda op: op.rate * (op.mean_ns or 0.0), reverse=True)
    return Loads(
        seconds,
        ops,
        [_worker(old_workers.get(w.slot), w, seconds) for w in after.workers],
        [_queue(old_queues.get(q.index), q, seconds) for q in after.queues],
    )


def _op(old: OpCounters | None, new: OpCounters, seconds: float) -> OpLoad:
    return OpLoad(**vars(_rate(old, new, seconds)), op=new.op)


def _worker(old: WorkerCounters | None, new: WorkerCounters, seconds: float) -> WorkerLoad:
    sleeps = _more(old.sleeps if old else 0, new.sleeps) / seconds
    return WorkerLoad(**vars(_rate(old, new, seconds)), slot=new.slot, sleeps=sleeps)


def _queue(old: QueueCounters | None, new: QueueCounters, seconds: float) -> QueueLoad:
    names = ("requests", "batches", "kicks", "calls")
    more = {
        name: _more(getattr(old, name) if old else 0, getattr(new, name)) / seconds
        for name in names
    }
    return QueueLoad(index=new.index, slot=new.slot, bad_chains=new.bad_chains, **more)


def _more(old: int, new: int) -> int:
    return new - old if new >= old else new


def _rate(old: CountersRow | None, new: CountersRow, seconds: float) -> Load:
    if old and new.count < old.count:
        old = None
    count = new.count - (old.count if old else 0)
    buckets = old.latency if old else [0] * len(new.latency)
    latency = [_more(*pair) for pair in zip(buckets, new.latency, strict=False)]
    return Load(
        rate=count / seconds,
        error_rate=_more(old.errors if old else 0, new.errors) / seconds,
        bytes_per_second=_more(old.bytes if old else 0, new.bytes) / seconds,
        mean_ns=_more(old.ns if old else 0, new.ns) / count if count else None,
        p50_ns=percentile(latency, 0.50),
        p99_ns=percentile(latency, 0.99),
    )


def percentile(latency: Sequence[int], part: float) -> float | None:
    """The upper end of the bucket below which this part of the requests is; None without a
    request."""
    wanted, seen = part * sum(latency), 0
    for index, count in enumerate(latency):
        seen += count
        if count and seen >= wanted:
            return float(BUCKET_NS << index)
    return None
