# SPDX-License-Identifier: Apache-2.0
"""The bridges of a mount: one thread for each request queue, all of them in C (fuse_bridge.c).

Owns guest memory, vrings and the C structures. Python sets them up, starts the threads and waits.
"""

import math
import os
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Self

from vfsd.frontend.guest_memory import GuestMemory, round_to_pages
from vfsd.frontend.slow_wait import SlowWait
from vfsd.frontend.vmm import DriverVring, Vmm
from vfsd.transport.native import check, ffi, lib, text

SLOTS_MAX: Final = 256  # requests under way per queue
STEP_MS: Final = 100  # between two looks at what ends a wait
ABANDONED_SECONDS: Final = 2.0
HIPRIO: Final = 0


@dataclass(frozen=True)
class Shape:
    """The number and size of the queues, and the values that follow from them."""

    queues: int  # request queues
    queue_size: int  # descriptors of each queue
    spin_us: int = lib.BRIDGE_SPIN_AUTO  # how long to look for replies before sleeping

    @property
    def pages(self) -> int:
        """Data pages of one request. The longest chain must fit the queue, as in Linux' driver."""
        return int(min(lib.BRIDGE_PAGES_MAX, self.queue_size - lib.BRIDGE_HEADS))

    @property
    def slots(self) -> int:
        return min(self.queue_size, SLOTS_MAX)

    @property
    def slots_bytes(self) -> int:
        return self.slots * int(lib.bridge_slot_bytes(self.pages))

    @property
    def hiprio_bytes(self) -> int:
        return self.queue_size * int(lib.HIPRIO_BUFFER_BYTES)

    @property
    def memory_bytes(self) -> int:
        vrings = (self.queues + 1) * DriverVring.bytes(self.queue_size)
        return vrings + round_to_pages(self.hiprio_bytes) + self.queues * self.slots_bytes


@dataclass(frozen=True)
class End:
    """Why a bridge ended."""

    kind: int  # enum bridge_end
    text: str = ""


class Bridges:
    """Everything between /dev/fuse and the back-end. close() it after the back-end has let go of
    guest memory."""

    def __init__(self, vmm: Vmm, shape: Shape) -> None:
        self._stack = ExitStack()
        self._shape = shape
        self._threads: list[threading.Thread] = []
        self.ends: list[End] = []
        with ExitStack() as undo:
            undo.callback(self._stack.close)
            self.stop_fd, self.ready_fd, self.ended_fd = (self._eventfd() for _ in range(3))
            self.memory = self._stack.enter_context(GuestMemory(shape.memory_bytes))
            self.vrings = [self._vring(index) for index in range(shape.queues + 1)]
            self._hiprio = self._create_hiprio(vmm)
            self._bridges: list[Any] = []
            self._slots = [self.memory.allocate(shape.slots_bytes) for _ in self.vrings[1:]]
            self._vmm = vmm
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._stack.close()

    def start(self, fuse_fds: list[int]) -> None:
        """Start a thread for each request queue; the caller keeps `fuse_fds`."""
        for vring, fuse_fd, slots in zip(self.vrings[1:], fuse_fds, self._slots, strict=True):
            bridge = self._create_bridge(vring, fuse_fd, slots)
            name = f"bridge {vring.index}"
            thread = threading.Thread(target=self._run, args=(bridge,), name=name)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the threads; requests that the back-end has not answered stay unanswered."""
        os.eventfd_write(self.stop_fd, 1)
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads = []

    def sent(self) -> Counter[str]:
        """The requests that the bridges have sent so far, by the name of the opcode. FORGET and
        INTERRUPT are not counted: they go another way."""
        total: Counter[str] = Counter()
        for bridge in self._bridges:
            for opcode in range(lib.BRIDGE_OPCODES):
                if count := bridge.sent[opcode]:
                    total[_opcode_name(opcode)] += count
        return total

    def end_session(self) -> None:
        """After join(): report to the back-end that its guest is gone, and wait for the answer.

        Requests without a reply at this point have lost their users, because the connection of the
        mount was aborted. They may hang as long as the back-end's storage, so they and what comes
        after them are not waited for beyond ABANDONED_SECONDS.
        """
        is_idle = all(lib.bridge_is_drained(bridge, 0) for bridge in self._bridges)
        if not self._bridges or not lib.bridge_end_session(self._bridges[0]):
            return
        until = monotonic() + (math.inf if is_idle else ABANDONED_SECONDS)
        wait = SlowWait("the back-end has not answered FUSE_DESTROY", self._vmm.is_ending)
        while self._vmm.is_there() and monotonic() < until:
            wait.rest()
            if lib.bridge_is_drained(self._bridges[0], STEP_MS):
                break

    def _run(self, bridge: Any) -> None:
        kind = lib.bridge_run(bridge)
        self.ends.append(End(kind, _describe(kind, bridge)))
        os.eventfd_write(self.ended_fd, 1)

    def _eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stack.callback(os.close, fd)
        return fd

    def _vring(self, index: int) -> DriverVring:
        vring = DriverVring.create(index, self._shape.queue_size, self.memory)
        self._stack.callback(vring.close)
        return vring

    def _create_hiprio(self, vmm: Vmm) -> Any:
        config: Any = ffi.new("struct hiprio_config *")
        ret = ffi.new("struct hiprio **")
        self.vrings[HIPRIO].fill(config.ring, self.memory, vmm.event_idx)
        config.buffers = self.memory.allocate(self._shape.hiprio_bytes)
        config.call_fd, config.stop_fd = self.vrings[HIPRIO].call_fd, self.stop_fd
        check(lib.hiprio_create(config, ret))
        self._stack.callback(lib.hiprio_destroy, ret[0])
        return ret[0]

    def _create_bridge(self, vring: DriverVring, fuse_fd: int, slots: int) -> Any:
        config: Any = ffi.new("struct bridge_config *")
        bridge: Any = ffi.new("struct bridge *")
        vring.fill(config.ring, self.memory, self._vmm.event_idx)
        config.indirect = self._vmm.indirect
        config.pages, config.slots = self._shape.pages, self._shape.slots
        config.slots_offset, config.spin_us = slots, self._shape.spin_us
        config.fuse_fd, config.call_fd = fuse_fd, vring.call_fd
        config.stop_fd, config.ready_fd = self.stop_fd, self.ready_fd
        config.hiprio = self._hiprio
        check(lib.bridge_init(bridge, config))
        self._stack.callback(lib.bridge_deinit, bridge)
        self._bridges.append(bridge)
        return bridge


_DESCRIPTIONS: Final[dict[int, Callable[[Any], str]]] = {
    lib.BRIDGE_BROKEN: lambda b: f"the back-end breaks the protocol: {_reason(b)}",
    lib.BRIDGE_FAILED: lambda b: f"{text(b.reason)}: {os.strerror(b.error)}",
}


def _describe(kind: int, bridge: Any) -> str:
    describe = _DESCRIPTIONS.get(kind)
    return describe(bridge) if describe else ""


def _reason(bridge: Any) -> str:
    if not bridge.opcode:
        return str(text(bridge.reason))
    return f"{text(bridge.reason)} ({_opcode_name(bridge.opcode)})"


def _opcode_name(opcode: int) -> str:
    op: Any = lib.fuse_op(opcode)
    return text(op.name) or str(opcode)
