# SPDX-License-Identifier: Apache-2.0
"""A FUSE session with a back-end, for measuring it: single requests, and loads (load.c).

Owns guest memory, vrings and the C loads, one for each request queue. A Plan says what a load
sends; the plans themselves are in load_ops.py.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Self

from vfsd.frontend.guest_memory import GuestMemory, round_to_pages
from vfsd.frontend.vmm import DriverVring, Vmm
from vfsd.transport.errors import OperatorError
from vfsd.transport.native import check, ffi, lib, text

ROOT: Final = lib.FUSE_ROOT_ID
HEADER_BYTES: Final = 16
QUEUE_SIZE: Final = 1024  # room for requests of 1 MiB
SILENCE_SECONDS: Final = 10.0
GRACE_SECONDS: Final = 30.0

# The features that a Linux guest offers, as far as they affect what is measured.
_OFFER: Final = (
    lib.FUSE_ASYNC_READ
    | lib.FUSE_ATOMIC_O_TRUNC
    | lib.FUSE_BIG_WRITES
    | lib.FUSE_DO_READDIRPLUS
    | lib.FUSE_READDIRPLUS_AUTO
    | lib.FUSE_ASYNC_DIO
    | lib.FUSE_PARALLEL_DIROPS
    | lib.FUSE_MAX_PAGES
    | lib.FUSE_INIT_EXT
    | lib.FUSE_CREATE_SUPP_GROUP
)


@dataclass(frozen=True)
class LoadShape:
    """How a load is sent."""

    depth: int = 1  # streams per queue
    queues: int = 1  # request queues
    poll: bool = False
    pages: int = 32  # data pages of one request, at most

    @property
    def load_bytes(self) -> int:
        return int(lib.load_bytes(self.pages, self.depth))

    @property
    def hiprio_bytes(self) -> int:
        return QUEUE_SIZE * int(lib.HIPRIO_BUFFER_BYTES)

    @property
    def memory_bytes(self) -> int:
        vrings = (self.queues + 1) * DriverVring.bytes(QUEUE_SIZE)
        loads = self.queues * round_to_pages(self.load_bytes)
        return vrings + round_to_pages(self.hiprio_bytes) + loads


@dataclass(frozen=True)
class Step:
    """One request of a plan; `flags` (enum load_flag) say which of its fields change."""

    opcode: int
    node: int
    body: bytes
    flags: int = 0
    error: int = 0
    reply: int = 0  # bytes after the header of the reply; -1: any
    digits: int = 0  # offset of the name's digits in `body`
    ino: int = 0
    uid: int = 0


@dataclass(frozen=True)
class Plan:
    """The requests that a stream repeats."""

    steps: Sequence[Step]
    fh: int = 0
    node: int = 0
    block: int = 0
    blocks: int = 1
    names: int = 0
    measured: bool = True


@dataclass
class LoadResult:
    """The results of loads, summed over all queues."""

    cycles: int = 0
    units: int = 0
    requests: int = 0
    forgets: int = 0
    kicks: int = 0
    calls: int = 0
    seconds: float = 0.0
    histogram: list[int] = field(default_factory=lambda: [0] * int(lib.LOAD_BUCKETS))

    def add(self, result: Any) -> None:
        for name in ("cycles", "units", "requests", "forgets", "kicks", "calls"):
            setattr(self, name, getattr(self, name) + int(getattr(result, name)))
        self.seconds = max(self.seconds, result.ns / 1e9)
        self.histogram = [a + int(b) for a, b in zip(self.histogram, result.histogram, strict=True)]

    def percentile_us(self, fraction: float) -> float:
        """The latency that `fraction` of the cycles did not exceed, to about 3 %."""
        wanted = fraction * sum(self.histogram)
        seen = 0
        for bucket, count in enumerate(self.histogram):
            seen += count
            if count and seen >= wanted:
                return bucket_ns(bucket) / 1000
        return 0.0


def bucket_ns(bucket: int) -> float:
    """The middle of a bucket of the histogram; the inverse of bucket_of() in load.c."""
    sub = int(lib.LOAD_SUB_BUCKETS)
    if bucket < sub:
        return float(bucket)
    power, rest = bucket // sub + 3, bucket % sub
    return float((1 << power) * (1 + (rest + 0.5) / sub))


def struct(name: str, **fields: int) -> bytes:
    """The bytes of a struct of <linux/fuse.h>."""
    return bytes(ffi.buffer(ffi.new(f"struct {name} *", fields)))


class LoadSession:
    """A started session; close() ends the session of the back-end."""

    def __init__(self, vmm: Vmm, shape: LoadShape) -> None:
        self.shape = shape
        self._vmm = vmm
        self._stack = ExitStack()
        self._plans: dict[tuple[int, int], Any] = {}  # keeps the C programs alive
        with ExitStack() as undo:
            undo.callback(self._stack.close)
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._stack.callback(os.close, self._stop_fd)
            self._memory = self._stack.enter_context(GuestMemory(shape.memory_bytes))
            vrings = [self._vring(index) for index in range(shape.queues + 1)]
            self._hiprio = self._create_hiprio(vrings[0])
            self._loads = [self._create_load(vring) for vring in vrings[1:]]
            vmm.start(self._memory, vrings)
            self._stack.callback(vmm.stop)
            self._init()
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def call(self, opcode: int, node: int, body: bytes = b"", uid: int = 0) -> bytes:
        """Send one request; return the bytes after the header of its reply."""
        load = self._loads[0]
        self._write(load, self.shape.depth, 0, Step(opcode, node, body, uid=uid))
        with self._watchdog(SILENCE_SECONDS):
            end = check(lib.load_call(load))
        if end:
            raise self._error(load, end)
        reply = bytes(ffi.buffer(load.reply, load.reply_len))
        header: Any = ffi.from_buffer("struct fuse_out_header *", reply)
        if header.error:
            what = os.strerror(-header.error)
            raise OperatorError(f"the back-end answers {op_name(opcode)} with: {what}")
        return reply[HEADER_BYTES:]

    def set_plan(self, queue: int, stream: int, plan: Plan) -> None:
        """Make a stream of a request queue (counted from 0) follow `plan`."""
        load = self._loads[queue]
        program: Any = ffi.new("struct load_program *")
        for number, step in enumerate(plan.steps):
            self._fill_step(program.steps[number], step)
            self._write(load, stream, number, step)
            check(lib.load_prepare(load, stream, number))
        program.count, program.measured = len(plan.steps), plan.measured
        program.block, program.blocks, program.names = plan.block, plan.blocks, plan.names
        state = load.streams[stream]
        state.program, state.fh, state.node = program, plan.fh, plan.node
        state.block = stream * plan.blocks // self.shape.depth
        state.listed = 0
        self._plans[queue, stream] = program

    def run(self, seconds: float, cpus: set[int] | None = None) -> LoadResult:
        """Run every queue's load, each in a thread of its own, on `cpus`."""
        outcome = LoadResult()
        ends: list[int] = []

        def body(load: Any) -> None:
            if cpus:
                os.sched_setaffinity(0, cpus)
            ends.append(lib.load_run(load, int(seconds * 1e9), 0))

        threads = [threading.Thread(target=body, args=(load,)) for load in self._loads]
        with self._watchdog(seconds):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for load in self._loads:
            if load.reason != ffi.NULL or any(ends):
                raise self._error(load, max(ends))
            outcome.add(load.result)
        return outcome

    def repeat(self, plan: Plan, cycles: int) -> None:
        """Repeat a plan `cycles` times, on the first queue."""
        load = self._loads[0]
        for stream in range(self.shape.depth):
            self.set_plan(0, stream, plan)
        with self._watchdog(SILENCE_SECONDS):
            end = lib.load_run(load, int(SILENCE_SECONDS * 1e9), cycles)
        if end:
            raise self._error(load, end)

    def _watchdog(self, seconds: float) -> "_Watchdog":
        return _Watchdog(seconds + GRACE_SECONDS, lambda: os.eventfd_write(self._stop_fd, 1))

    def _error(self, load: Any, end: int) -> OperatorError:
        reason = text(load.reason) or "does not answer"
        if end == lib.LOAD_WRONG:
            wrong = load.wrong
            reason = (
                f"answers {op_name(wrong.opcode)} wrongly: {reason}"
                f" (error {wrong.error}, {wrong.len} bytes)"
            )
        elif end == lib.LOAD_BROKEN:
            reason = f"breaks the protocol: {reason}"
        return OperatorError(f"the back-end {reason}")

    def _fill_step(self, ret: Any, step: Step) -> None:
        ret.flags, ret.error = step.flags, step.error
        ret.reply_len = 0 if step.reply < 0 else HEADER_BYTES + step.reply
        ret.digits, ret.ino = step.digits, step.ino

    def _write(self, load: Any, stream: int, number: int, step: Step) -> None:
        header = struct(
            "fuse_in_header", len=ffi.sizeof("struct fuse_in_header") + len(step.body),
            opcode=step.opcode, nodeid=step.node, uid=step.uid, gid=step.uid, pid=os.getpid(),
        )  # fmt: skip
        request = header + step.body
        ffi.memmove(lib.load_request(load, stream, number), request, len(request))

    def _init(self) -> None:
        body = struct(
            "fuse_init_in", major=lib.FUSE_KERNEL_VERSION, minor=38, max_readahead=1 << 20,
            flags=_OFFER & 0xFFFFFFFF, flags2=_OFFER >> 32,
        )  # fmt: skip
        self.call(lib.FUSE_INIT, 0, body)

    def _vring(self, index: int) -> DriverVring:
        vring = DriverVring.create(index, QUEUE_SIZE, self._memory)
        self._stack.callback(vring.close)
        return vring

    def _create_hiprio(self, vring: DriverVring) -> Any:
        config: Any = ffi.new("struct hiprio_config *")
        ret = ffi.new("struct hiprio **")
        vring.fill(config.ring, self._memory, self._vmm.event_idx)
        config.buffers = self._memory.allocate(self.shape.hiprio_bytes)
        config.call_fd, config.stop_fd = vring.call_fd, self._stop_fd
        check(lib.hiprio_create(config, ret))
        self._stack.callback(lib.hiprio_destroy, ret[0])
        return ret[0]

    def _create_load(self, vring: DriverVring) -> Any:
        config: Any = ffi.new("struct load_config *")
        load: Any = ffi.new("struct load *")
        vring.fill(config.ring, self._memory, self._vmm.event_idx)
        config.indirect, config.poll = self._vmm.indirect, self.shape.poll
        config.pages, config.streams = self.shape.pages, self.shape.depth
        config.offset = self._memory.allocate(self.shape.load_bytes)
        config.call_fd, config.stop_fd = vring.call_fd, self._stop_fd
        config.silence_ns = int(SILENCE_SECONDS * 1e9)
        config.hiprio = self._hiprio
        check(lib.load_init(load, config))
        self._stack.callback(lib.load_deinit, load)
        return load


class _Watchdog:
    """Calls a function if a block does not end in time."""

    def __init__(self, seconds: float, bark: Callable[[], object]) -> None:
        self._timer = threading.Timer(seconds, bark)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()


def op_name(opcode: int) -> str:
    op: Any = lib.fuse_op(opcode)
    return text(op.name) or str(opcode)
