# SPDX-License-Identifier: Apache-2.0
"""`vfsd mount`: a back-end's export, mounted on this host until it is unmounted.

The order matters. The back-end is ready before mount(2), since mount(2) makes the kernel send
FUSE_INIT, and every process that uses the mount point waits for the answer. The bridges run right
after mount(2), and the share counts as mounted when FUSE_INIT is answered. At the end the order is
reversed: the bridges end before their channels are closed, and the channels are closed before the
back-end lets go of guest memory.

A mount whose back-end is gone stays where it is, and every access to it fails at once, until a user
unmounts it or a signal ends the command. If the mount vanished by itself, a program that goes on
writing below the mount point would fill the folder that the mount had covered, and no user would
notice.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

from vfsd.frontend.bridge import Bridges, Shape
from vfsd.frontend.fuse_mount import FuseMount
from vfsd.frontend.slow_wait import SlowWait
from vfsd.frontend.vmm import Vmm
from vfsd.transport.ending_signals import ENDING
from vfsd.transport.errors import OperatorError
from vfsd.transport.native import lib
from vfsd.transport.passed_fds import close_fds


class Signals:
    """The signals that end a mount. A signal interrupts the code that runs; within deferred() a
    signal makes fileno() readable instead."""

    def __init__(self) -> None:
        self._are_deferred = False
        self._fd, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._handle) for number in ENDING
        }
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        close_fds((self._fd, self._wakeup))

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._are_deferred = True
        try:
            yield
        finally:
            self._are_deferred = False

    def fileno(self) -> int:
        return self._fd

    def take(self) -> bool:
        """True if a signal has come since the last call."""
        return bool(os.read(self._fd, 4096))

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self._are_deferred:
            raise KeyboardInterrupt


def mount(vmm: Vmm, signals: Signals, names: tuple[str, str], shape: Shape) -> int:
    """Mount `names` (source, directory) until it is unmounted; returns the exit status. Raises
    OperatorError if the share cannot be mounted."""
    source, target = names
    with Bridges(vmm, shape) as bridges:
        vmm.start(bridges.memory, bridges.vrings)
        with signals.deferred(), FuseMount(source, target, shape.queues) as fuse:
            ending = _Ending(vmm, bridges, fuse, signals)
            try:
                bridges.start(fuse.fds)
                lost = ending.wait(f"mounted {source} on {target}, {_count(shape.queues, 'queue')}")
            finally:
                bridges.stop()
                fuse.abort()
                ending.join()
            if lost:
                _cover(fuse, signals, lost)
                return 1
        bridges.end_session()
        vmm.stop()
    return 0


def _cover(fuse: FuseMount, signals: Signals, lost: OperatorError) -> None:
    """Leave a mount that has failed in its place until it is unmounted or a signal comes."""
    why = f"{lost}; every access to '{fuse.target}' fails until it is unmounted"
    print(f"vfsd: {why}", file=sys.stderr, flush=True)
    poll = select.poll()
    with Path("/proc/self/mountinfo").open("rb") as table:
        poll.register(table, select.POLLPRI)  # the table has changed
        poll.register(signals, select.POLLIN)
        while fuse.is_there():
            if any(fd == signals.fileno() for fd, _ in poll.poll()):
                return


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class _Ending:
    """Waits for the events that end a mount."""

    def __init__(self, vmm: Vmm, bridges: Bridges, fuse: FuseMount, signals: Signals) -> None:
        self._vmm = vmm
        self._bridges = bridges
        self._fuse = fuse
        self._signals = signals
        self._unmounting: threading.Thread | None = None
        self._poll = select.poll()
        self._fds = {
            vmm.fileno(): self._backend_spoke,
            bridges.ended_fd: self._bridge_ended,
            signals.fileno(): self._signalled,
        }
        for fd in (*self._fds, bridges.ready_fd):
            self._poll.register(fd, select.POLLIN)

    def wait(self, line: str) -> OperatorError | None:
        """Print `line` when the mount can be used; return when the mount is over: the reason if the
        mount has failed while it was in use."""
        self._wait_ready()
        print(line, flush=True)
        try:
            while not self._step():
                pass
        except OperatorError as lost:
            if self._unmounting:
                raise
            return lost
        return None

    def join(self) -> None:
        if self._unmounting:
            self._unmounting.join()

    def _wait_ready(self) -> None:
        wait = SlowWait("the back-end has not answered FUSE_INIT")
        ready = False
        while not ready:
            fds = {fd for fd, _ in self._poll.poll(wait.rest_ms())}
            ready = self._bridges.ready_fd in fds
            if not ready and self._handle(fds):
                raise KeyboardInterrupt
        self._poll.unregister(self._bridges.ready_fd)

    def _step(self) -> bool:
        return self._handle({fd for fd, _ in self._poll.poll()})

    def _handle(self, fds: set[int]) -> bool:
        """True if the mount is over."""
        return any(handle() for fd, handle in self._fds.items() if fd in fds)

    def _backend_spoke(self) -> bool:
        raise OperatorError("the back-end has closed the connection")

    def _bridge_ended(self) -> bool:
        end = self._bridges.ends[0]
        if end.kind != lib.BRIDGE_UNMOUNTED:
            raise OperatorError(end.text)
        if self._fuse.is_mounted():
            raise OperatorError("the FUSE connection was aborted")
        return True

    def _signalled(self) -> bool:
        """The first signal unmounts, which may take a while; the second signal does not wait."""
        self._signals.take()
        self._vmm.is_ending = True
        if self._unmounting:
            return True
        self._unmounting = threading.Thread(target=self._unmount, name="unmount")
        self._unmounting.start()
        return False

    def _unmount(self) -> None:
        """Runs in a thread: before umount(2) returns, the kernel sends us the dirty pages to
        write."""
        if not self._fuse.unmount(lazy=False):
            print(f"vfsd: '{self._fuse.target}' is in use: its users get an error", file=sys.stderr)
            self._fuse.unmount(lazy=True)
            os.kill(os.getpid(), signal.SIGTERM)
