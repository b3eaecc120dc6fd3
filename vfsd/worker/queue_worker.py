# SPDX-License-Identifier: Apache-2.0
"""One worker process: serve its rings in C, come back to Python for a reason, serve again.

A worker never closes an fd that other processes may use: the fd table is shared with the pool and
the other workers. So a worker ends by _exit() or by a signal, and the pool closes the fds that were
the worker's own.
"""

import errno
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vfsd.transport.channel import WorkerEnd
from vfsd.transport.control_messages import Content
from vfsd.transport.errors import ProtocolError
from vfsd.transport.job import Job
from vfsd.transport.native import ffi, lib, text
from vfsd.transport.process_title import setproctitle
from vfsd.worker import fs_config, init
from vfsd.worker.log_forward import LogForward
from vfsd.worker.sandbox import Sandbox
from vfsd.worker.tables import Tables

EXIT_STOPPED: Final = 0  # on the supervisor's order; the pool does not create another
EXIT_FAILED: Final = 3  # a bug, or no memory; the line on stderr says which
DRAIN_MS: Final = 2000  # for the requests of a ring that is stopped
DRIVERS: Final = 4  # drivers of a guest that take turns: firmware, boot loader, kernels
BUSY_WRITER_SECONDS: Final = 0.001  # between two looks at a device state that is being written


@dataclass(frozen=True)
class Place:
    """Everything that a worker inherits. `started` is an eventfd by which the worker reports its
    start to the pool."""

    job: Job
    sandbox: Sandbox
    tables: Tables
    slot: int
    started: int

    @property
    def listener(self) -> int:
        return self.job.fds.listeners[self.slot]


def run(place: Place) -> int:
    """Run as a worker; returns the exit status."""
    _reset_signals()
    worker = QueueWorker(place)
    worker.pin()
    worker.announce()
    return worker.serve()


def _reset_signals() -> None:
    """Undo what the holder has set. SIGTERM ends a worker; signals of a
    terminal do not."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _line_of(refusal: Any) -> str:
    """Why the guest got EPERM for some ids, and what to do."""
    return (
        f"the guest gets EPERM as user {refusal.uid} with group {refusal.gid}: this daemon may not"
        f" act as that user; --translate-uid=squash-guest:0:{refusal.own_uid}:65536 and"
        f" --translate-gid=squash-guest:0:{refusal.own_gid}:65536 make every user of the guest the"
        " daemon's own user; --uid-map and --gid-map give the sandbox more users"
    )


_INODES: Final = (
    "; that number is the smaller of --inode-limit and what the memory of the host and of the"
    " control group allows"
)
FULLNESS: Final = {
    lib.INODES_MANY: "the guest knows four fifths of the {inodes} files that it may know at a time"
    + _INODES,
    lib.INODES_FULL: "the guest knows {inodes} files, as many as it may know at a time, and gets"
    " ENFILE for others until it forgets some" + _INODES,
    lib.INODES_WITHOUT_FD: "the guest gets ENFILE, as {fds} files may be open at a time and most of"
    " them are; see --rlimit-nofile and --inode-file-handles",
}


class QueueWorker:
    """The Python half of a worker."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._channel = WorkerEnd(place.listener)
        self._log = LogForward(self._channel.send, place.job.log_level)
        self._title = ""
        self._stopping = False
        self._is_mounted = False  # this worker has served an INIT, and no DESTROY since
        self._agreed: deque[str] = deque(maxlen=DRIVERS)  # what the log already says of mounts
        self._generation = 0  # of the device state that is in force here
        # Id of an adopt command -> the generation that the command asks for, and whether the
        # command ends the FUSE session.
        self._pending: dict[int, tuple[int, bool]] = {}
        self._row = place.tables.workers.rows[place.slot]
        self._proc_self_fd = self._open_proc_self_fd()
        self._worker = self._create()
        self._actions: dict[int, Callable[[], None]] = {
            lib.SERVE_CONTROL: self._control,
            lib.SERVE_COLD: self._cold,
            lib.SERVE_BROKEN: self._broken,
            lib.SERVE_UNSHARED: self._unshared,
        }

    def _create(self) -> Any:
        place, job, tables = self._place, self._place.job, self._place.tables
        config: Any = ffi.new("struct worker_config *")
        fs_config.fill(config.fs, job, place.sandbox, tables, place.slot, self._proc_self_fd)
        config.control_fd = self._channel.fileno()
        config.poll_us = job.poll_us
        config.threads = job.thread_pool_size
        config.device = tables.device
        config.records = tables.records
        worker = lib.worker_create(config)
        if worker == ffi.NULL:
            raise MemoryError("no memory for a worker")
        return worker

    def _open_proc_self_fd(self) -> int:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open("self/fd", flags, dir_fd=self._place.sandbox.proc_fd)
        self._row.private_fds[0] = fd
        self._row.private_fd_count = 1
        return fd

    def pin(self) -> None:
        """Stay on the CPU that --queue-cpus names; threads that are started later inherit that.
        Call this after worker_create(), which does not let a worker poll that sees only one CPU."""
        cpus = self._place.job.queue_cpus
        if not cpus:
            return
        cpu = cpus[self._place.slot % len(cpus)]
        try:
            os.sched_setaffinity(0, [cpu])
        except OSError as error:  # the CPU went offline, or left our cpuset
            self._log.warn(f"--queue-cpus: cannot run on CPU {cpu}: {error.strerror}")

    def announce(self) -> None:
        """Report to the pool that all private fds are open now, and to the supervisor that this
        worker serves."""
        self._row.starts += 1
        self._row.pid = os.getpid()
        self._show_title()
        os.eventfd_write(self._place.started, 1)
        self._adopt()
        self._channel.send({"event": "hello", "pid": os.getpid()})

    def serve(self) -> int:
        # The action for a reason may send a message, and a send can consume the event of a command
        # that has come in: so commands are read after every action.
        self._obey()
        while not self._stopping:
            reason = lib.serve(self._worker)
            self._actions[reason]()
            self._obey()
        return EXIT_STOPPED

    # SERVE_CONTROL

    def _control(self) -> None:
        self._adopt()
        refusal = ffi.new("struct refusal *")
        if lib.worker_take_refusal(self._worker, refusal):
            self._log.warn(_line_of(refusal))
        if fullness := lib.worker_take_fullness(self._worker):
            fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            inodes = self._place.job.inode_capacity - 1
            self._log.warn(FULLNESS[fullness].format(inodes=inodes, fds=fds))

    def _obey(self) -> None:
        """Read and obey commands until there are no more."""
        while True:
            try:
                content = self._channel.receive()
            except ProtocolError as error:
                self._log.warn(f"control channel: message refused: {error}")
                continue
            if content is None:
                return
            try:
                self._command(content)
            except (KeyError, TypeError, ValueError):
                self._log.warn(f"control channel: command {content!r} has missing or wrong fields")

    def _command(self, content: Content) -> None:
        match content.get("command"):
            case "adopt":
                self._pending[content["id"]] = content["generation"], "ends_session" in content
                self._adopt()
            case "log-level":
                self._log.set_level(content["level"])
                self._channel.send({"id": content["id"]})
            case "stop":
                self._stopping = True
            case unknown:
                self._log.warn(f"control channel: unknown command {unknown!r}")

    def _adopt(self) -> None:
        """Adopt the device state if it has changed."""
        result = lib.worker_adopt(self._worker, DRAIN_MS)
        if result == -errno.EAGAIN:  # serve() returns at once until the state is written
            time.sleep(BUSY_WRITER_SECONDS)
            return
        if result < 0:
            self._log.error(f"cannot map the guest's memory: {os.strerror(-result)}")
        self._generation = lib.worker_generation(self._worker)
        self._show_title()
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Answer the adopt commands whose generation is in force now."""
        for request_id, (generation, ends_session) in list(self._pending.items()):
            if self._generation < generation:
                continue
            del self._pending[request_id]
            if ends_session and self._generation == generation:
                self._end_session("the guest has reset the device")
            answer = {"generation": self._generation, "vrings": self._vrings()}
            self._channel.send({"id": request_id, **answer})

    def _vrings(self) -> dict[str, dict[str, Any]]:
        """Next avail index and error of each ring of this worker that was ever started."""
        status = {}
        for index in range(self._place.tables.device.vring_count):
            base = lib.worker_ring_base(self._worker, index)
            error = text(lib.worker_ring_error(self._worker, index))
            if base >= 0 or error is not None:
                status[str(index)] = {"last_avail": max(base, 0), "error": error}
        return status

    def _show_title(self) -> None:
        """Set the process title to the queues that this worker serves, for ps."""
        place = self._place
        queues = [
            f"queue {i}" if i else "hiprio"
            for i, vring in enumerate(place.tables.device.vrings)
            if vring.running and vring.worker == place.slot
        ]
        serves = f" ({', '.join(queues)})" if queues else ""
        title = f"vfsd: {place.job.name} worker {place.slot}{serves}"
        if title != self._title:
            self._title = title
            setproctitle(title)

    # SERVE_BROKEN

    def _broken(self) -> None:
        while (index := lib.worker_broken_ring(self._worker)) >= 0:
            reason = text(lib.worker_ring_error(self._worker, index)) or "no reason given"
            self._channel.send({"event": "ring-broken", "vring": index, "reason": reason})

    # SERVE_UNSHARED

    def _unshared(self) -> None:
        gpa = ffi.new("uint64_t *")
        count = lib.worker_unshared(self._worker, gpa)
        self._log.warn(
            f"guest memory at {gpa[0]:#x} is not shared with virtiofsd: {count} requests failed; "
            "QEMU shares only memory with share=on, also if the memory is plugged in later"
        )

    # SERVE_COLD

    def _cold(self) -> None:
        argument, length = ffi.new("uint8_t const **"), ffi.new("uint32_t *")
        opcode = lib.worker_cold_request(self._worker, argument, length)
        if opcode == lib.FUSE_INIT:
            error, reply = self._init(bytes(ffi.buffer(argument[0], length[0])))
        elif opcode == lib.FUSE_DESTROY:
            self._end_session("the guest has unmounted the share")
            error, reply = 0, b""
        else:
            error, reply = errno.ENOSYS, b""
        lib.worker_cold_reply(self._worker, -error, reply, len(reply))

    def _end_session(self, why: str) -> None:
        """Close every file that the guest has open, and log `why` if the guest had mounted the
        share."""
        if self._place.tables.workers.session.ready:
            self._log.info(why)
        lib.worker_session_end(self._worker)
        self._is_mounted = False

    def _init(self, argument: bytes) -> tuple[int, bytes]:
        """INIT: an errno, or 0 and the reply. A second INIT begins a new session."""
        offer = init.read_offer(argument)
        if offer.major > init.MAJOR:
            return 0, init.encode_version()
        try:
            agreement = init.negotiate(offer, self._place.job.fs)
        except init.InitError as error:
            self._log.warn(str(error))
            return error.errno, b""
        lib.worker_session_begin(self._worker, agreement.minor, agreement.flags, offer.flags)
        self._report_mount(offer.minor, agreement)
        return 0, init.encode(agreement)

    def _report_mount(self, minor: int, agreement: init.Agreement) -> None:
        """Log a mount. A guest can repeat INIT as often as it likes, so a repeated INIT is logged
        at level debug. The agreed flags are logged once for each driver, because firmware and
        kernel take turns when a guest is reset."""
        features = " ".join(agreement.names()) or "no features"
        agreed = f"FUSE {init.MAJOR}.{minor}, {features}"
        level, self._is_mounted = "debug" if self._is_mounted else "info", True
        if agreed in self._agreed:
            self._log.write(level, f"the guest has mounted the share again: FUSE 7.{minor}")
            return
        self._agreed.append(agreed)
        self._log.write(level, f"the guest has mounted the share: {agreed}")
        for line in init.shortcomings(agreement, self._place.job.fs):
            self._log.warn(line)
