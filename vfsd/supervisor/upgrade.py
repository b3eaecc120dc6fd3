# SPDX-License-Identifier: Apache-2.0
"""The upgrade of a daemon that serves: the version that is installed now takes its place.

THEORY

Purpose. A new version must take effect without the guest: no VMM connects again, and what the guest
has open must stay open. So the new version is started as a whole new daemon while this one serves,
and gets everything when it is ready. What can fail, fails before the switch, and this daemon goes
on.

Actors. "We" is the supervisor of the old version. The operator's request comes by a socket
(upgrade_requests.py). The launcher starts the new daemon (succession.py), whose supervisor is at
the other end of a socket pair (takeover.py, version_link.py). Its sandbox is at the other end of
another pair, by which our pool sends files to it (heritage.py): no supervisor ever has a file of
the share.

Order.
   1. We send OFFER, with the socket to listen on, the records of the rings, and the sandbox's end
      of the other pair. Our pool shows its namespaces. The new daemon does all that a start does,
      and its sandbox enters the mounts of ours, so that mount ids stay the same. PREPARED.
   2. Between two messages of the VMM our pool kills its workers; what they had in flight is in the
      records of the rings. No worker is created until 5, or until we resume.
   3. Our pool writes the session image (session_image.c) and sends all files of the tables with it.
      The new sandbox fills its own tables from them, which may be other tables: each field of an
      image has a name. We send VM: the session with the VMM and all its fds. TAKEN.
   4. We save that GO is sent, and send GO. The new daemon leaves GO on the socket, and sends
      SERVING, and creates workers.
   5. We peek at SERVING, save that our share has ended, and end. The launcher leaves the socket
      file and the pid file to the new daemon (HAND_OVER).

Invariant. Workers of both versions never run at the same time. Ours are dead from 2 on, and come
again only if SERVING can no longer be sent: before GO, or if the socket is closed and SERVING is
not on it. Workers of the new version are created only after SERVING.

Death. Each kill of one process leaves one daemon that serves (tests/model):
  * Our supervisor, before GO was saved: its successor resumes. The socket to the new daemon is in
    no saved state, so it is closed, and the new daemon ends.
  * Our supervisor, after that: its successor sends GO again, and goes on with 5.
  * The new supervisor, before TAKEN: the new daemon ends, we resume. Later: its successor finds GO
    on the socket, now or when it comes, and SERVING may be sent twice.
  * All of the new daemon, before SERVING: we resume. After SERVING: as if keeper and supervisor of
    any daemon die at once, the share ends.
  * Our pool is replaced, and finds in its record that workers are halted. Our sandbox: we resume as
    after any loss of a sandbox, or, after GO, leave that to the new daemon.
  * The new sandbox, before TAKEN: the new daemon ends, we resume. Later it is lost as any other.
"""

import math
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from vfsd import __version__
from vfsd.supervisor.bequest_orders import bequeath, halt, resume, show
from vfsd.supervisor.boot import Boot
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.fd_store import name_of
from vfsd.supervisor.kept_vm import OUTBOX, STATE
from vfsd.supervisor.launcher_requests import LauncherGoneError
from vfsd.supervisor.pool_client import PoolClient
from vfsd.supervisor.pool_errors import PoolDiedError
from vfsd.supervisor.segments import FILE_CAPACITY
from vfsd.supervisor.session import Session
from vfsd.supervisor.upgrade_requests import Request, UpgradeRequests
from vfsd.supervisor.version_link import FDS_MAX, VersionPacket, receive, send
from vfsd.transport.errors import ProtocolError
from vfsd.transport.native import lib
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.shared_memory import create_segment

LAST_WAIT_MS: Final = 2000
TAKE_SECONDS: Final = 10.0  # for the time between the last worker's end and TAKEN
CHANNEL: Final = (socket.AF_UNIX, socket.SOCK_SEQPACKET)


class HandedOverError(Exception):
    """The new version serves; this daemon has nothing left to serve."""


class FailedError(Exception):
    """The upgrade has failed, and this daemon is to go on. One line says why."""


@dataclass(frozen=True)
class Vm:
    """The VM that is connected, and its pool."""

    pool: PoolClient
    session: Session
    frontend: int
    has_spoken: bool

    def fds(self) -> list[int]:
        return [self.frontend, *self.session.fds()]


@dataclass
class Heir:
    """The new daemon. `socket`: to its supervisor; `heritage`: our pool's end of the pair to its
    sandbox; None if no VM was connected when the new daemon was started."""

    process: int  # pidfd
    socket: int
    heritage: int | None
    deadline: float  # monotonic: by then it must be prepared
    is_watched: bool = True  # by the event loop
    prepared: VersionPacket | None = None
    failure: str | None = None


class Upgrade:
    """The upgrades of one supervisor. `note(heir, ended)` saves the state with these values."""

    def __init__(
        self, boot: Boot, loop: EventLoop, note: Callable[[int | None, int | None], None]
    ) -> None:
        self._boot = boot
        self._loop = loop
        self._note = note
        self._requests = UpgradeRequests(loop)
        self._heir: Heir | None = None

    def start(self) -> None:
        """Accept requests from now on. A share is served without upgrades where no socket can be
        made."""
        try:
            self._requests.listen()
            self._loop.every_turn(self._tick)
        except OSError as error:
            self._boot.log.write("warn", f"vfsd upgrade will not work: {error.strerror}")

    def is_due(self) -> bool:
        """Is there something to do that advance() does?"""
        if self._heir is None:
            return self._requests.pending is not None
        return self._heir.prepared is not None or self._heir.failure is not None

    def advance(self, vm: Vm | None) -> None:
        """Do what is due, between two messages of the VMM. HandedOverError if the new version
        serves."""
        request = self._requests.pending
        assert request
        try:
            if self._heir is None:
                self._begin(request, vm)
            elif self._heir.failure is not None:
                self.give_up(self._heir.failure)
            elif request.is_dry_run:
                self._conclude(True, _forecast(self._heir, vm))
            else:
                self._switch(self._heir, vm)
        except FailedError as error:
            self.give_up(str(error))
        except (LauncherGoneError, OSError, ProtocolError) as error:
            self.give_up(f"it could not be started: {error}")

    def give_up(self, why: str) -> None:
        """End an upgrade that is under way, if one is, and go on serving."""
        if self._requests.pending:
            self._boot.log.write("error", f"the upgrade has failed, and nothing changes: {why}")
            self._conclude(False, why)

    def _conclude(self, is_done: bool, text: str) -> None:
        """Answer the operator, and end the new daemon."""
        heir, self._heir = self._heir, None
        if heir:
            self._unwatch(heir)
            close_fds([heir.socket, *([] if heir.heritage is None else [heir.heritage])])
            self._boot.launcher.kill(heir.process)
            os.close(heir.process)
        self._requests.answer(is_done, text)

    # Before the switch.

    def _begin(self, request: Request, vm: Vm | None) -> None:
        """Start the new daemon, and make an offer."""
        ours, theirs = socket.socketpair(*CHANNEL)
        with theirs:
            process = self._boot.launcher.start_heir(theirs.fileno())
        deadline = time.monotonic() + request.seconds
        self._heir = Heir(process, ours.detach(), None, deadline)
        self._loop.register(self._heir.socket, self._receive)
        self._boot.log.write("info", "an upgrade begins: the installed version is started")
        self._offer(self._heir, vm)

    def _offer(self, heir: Heir, vm: Vm | None) -> None:
        options, listener = self._boot.options, self._boot.listener.socket
        level = self._boot.control_record.log_level
        fds = [listener.fileno()] if listener else []
        sandbox: socket.socket | None = None
        if vm:
            pool, sandbox = socket.socketpair(*CHANNEL)
            heir.heritage = pool.detach()
            show(vm.pool, heir.heritage)
            fds += [sandbox.fileno(), vm.pool.segments.rings]
        send(
            heir.socket,
            "offer",
            fds,
            version=__version__,
            listens=listener is not None,
            vm=vm is not None,
            queues=options.request_queues + 1,
            workers=options.workers,
            inodes=options.inode_limit,
            records=lib.VFSD_RECORDS_LAYOUT,
            log_level=None if level == options.log_level else level,  # an operator has set it
        )
        if sandbox:
            sandbox.close()

    def _receive(self) -> None:
        """The new daemon has sent something before the switch, or is gone."""
        heir = self._heir
        assert heir
        try:
            packet = receive(heir.socket)
        except (OSError, ProtocolError) as error:
            packet = VersionPacket("failed", {"error": str(error)}, ())
        if packet is None:
            heir.failure = heir.failure or "it has ended before it was ready"
            self._unwatch(heir)
        elif packet.kind == "prepared":
            heir.prepared = packet
        elif packet.kind == "failed":
            heir.failure = str(packet.content.get("error"))

    def _unwatch(self, heir: Heir) -> None:
        if heir.is_watched:
            heir.is_watched = False
            self._loop.unregister(heir.socket)

    def _tick(self) -> float:
        if self._heir is None or self._heir.prepared or self._heir.failure:
            return math.inf
        left = self._heir.deadline - time.monotonic()
        if left <= 0:
            self._heir.failure = "it was not ready in time"
        return max(0.0, left)

    # The switch.

    def _switch(self, heir: Heir, vm: Vm | None) -> None:
        """Steps 2 to 5 of the order. FailedError if our daemon goes on."""
        if (vm is None) != (heir.heritage is None):
            raise FailedError("a VM has connected, or gone, in the meantime; upgrade again")
        start = time.monotonic()
        try:
            self._unwatch(heir)
            if vm and heir.heritage is not None:
                self._leave_files(vm.pool, heir.heritage)
            self._send_vm(heir, vm)
            self._await_taken(heir)
            self._go(heir.socket)
        except PoolDiedError:
            raise
        except BaseException:
            if vm:
                resume(vm.pool)
            raise
        self._end_service(heir.socket, time.monotonic() - start)

    def _leave_files(self, pool: PoolClient, heritage: int) -> None:
        if not halt(pool):
            raise FailedError("a worker waits for a file system that does not answer")
        inodes = self._boot.options.inode_limit + 1
        size = lib.session_image_bytes_max(inodes, FILE_CAPACITY)
        image = create_segment("vfsd-image", size)
        try:
            refusal = bequeath(pool, heritage, image)
        finally:
            os.close(image)
        if refusal is not None:
            raise FailedError(f"the files could not be passed on: {refusal}")

    def _send_vm(self, heir: Heir, vm: Vm | None) -> None:
        fds = vm.fds() if vm else []
        content: dict[str, Any] = {"session": None}
        if vm:
            content = {
                "session": vm.session.snapshot(),
                "frontend": vm.frontend,
                "has_spoken": vm.has_spoken,
                "spawned": sorted(vm.pool.spawned),
                "ended": sorted(vm.pool.ended),
            }
        send(heir.socket, "vm", fds[:FDS_MAX], numbers=fds, **content)
        for at in range(FDS_MAX, len(fds), FDS_MAX):
            send(heir.socket, "fds", fds[at : at + FDS_MAX])

    def _await_taken(self, heir: Heir) -> None:
        """Wait until the new daemon has the VM and the session."""
        seen: list[int] = []
        self._loop.register(heir.socket, lambda: seen.append(heir.socket))
        try:
            if not self._loop.wait(lambda: bool(seen), TAKE_SECONDS):
                raise FailedError("it did not take the session in time")
        finally:
            self._loop.unregister(heir.socket)
        packet = receive(heir.socket)
        if packet is None:
            raise FailedError("it has ended while it took the session")
        if packet.kind != "taken":
            raise FailedError(str(packet.content.get("error", packet.kind)))

    def _go(self, heir: int) -> None:
        """Let the new daemon serve, and wait until it says that it does, for as long as it lives:
        nothing else says which of the two is to serve."""
        self._note(heir, None)
        with suppress(OSError):  # it is gone, or it has GO already and has closed the socket
            send(heir, "go", names=self._names(), label=self._boot.state.last_label())
        if not is_serving(heir):
            self._note(None, None)
            raise FailedError("it has died before it served")
        self._note(heir, 0)

    def _names(self) -> list[str]:
        """The names of what we have stored (--keep-state)."""
        labels = set(self._boot.store.labels.values()) if self._boot.store else set()
        return [STATE, OUTBOX, *map(name_of, sorted(labels))] if self._boot.store else []

    def _end_service(self, heir: int, seconds: float) -> None:
        pause = f"requests waited for {seconds * 1000:.0f} ms"
        self._boot.log.write("info", f"the new version serves; {pause}")
        _await_end(heir)
        self._requests.answer(True, f"the new version serves; {pause}")
        raise HandedOverError

    def go_on(self, heir: int) -> None:
        """Go on where another supervisor died after it had saved that GO is sent. Returns if this
        daemon is to serve; HandedOverError if not."""
        with suppress(FailedError):
            self._go(heir)
            raise HandedOverError
        os.close(heir)


def _await_end(heir: int) -> None:
    """The new daemon closes its end when it owns everything; until then the end of our processes
    would only take CPU time from it."""
    poll = select.poll()
    poll.register(heir, 0)
    poll.poll(LAST_WAIT_MS)  # POLLHUP


def is_serving(heir: int) -> bool:
    """Has the new daemon sent SERVING? The packet stays on the socket. False if all of the new
    daemon is gone and has not sent it."""
    while (packet := receive(heir, socket.MSG_PEEK)) is not None:
        if packet.kind == "serving":
            return True
        receive(heir)  # TAKEN, a second time
    return False


def _forecast(heir: Heir, vm: Vm | None) -> str:
    """What an upgrade would do."""
    assert heir.prepared
    theirs = heir.prepared.content
    same = theirs.get("tables") == lib.VFSD_TABLES_LAYOUT
    tables = "the same layout" if same else "another layout"
    what = (
        f"the VM, its files and {tables} of the tables" if vm else "the socket; no VM is connected"
    )
    version = theirs.get("version")
    return (
        f"version {version} would take the place of version {__version__}: it is ready for {what}"
    )
