# SPDX-License-Identifier: Apache-2.0
"""The supervisor process: connects one pool with one front-end at a time.

The flow is a straight line: start a pool, wait for a front-end, handle its messages until it goes
away. Everything else (the pool's events, workers' logs, signals) happens in the event loop while
that line waits. Each front-end gets a pool of its own, so no data of one guest is left for the next
guest.
"""

import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from vfsd.supervisor.backend import Backend, BackendContext, signal_error
from vfsd.supervisor.boot import Boot
from vfsd.supervisor.confinement import confine_supervisor
from vfsd.supervisor.descendants import descendants
from vfsd.supervisor.effects import (
    Apply,
    Close,
    Effect,
    EndFuseSession,
    Log,
    Prepare,
    Reply,
    ReplyBase,
    ReplyInflight,
)
from vfsd.supervisor.event_loop import EventLoop, StopError
from vfsd.supervisor.frontend_fds import check_fds, memory_hazard
from vfsd.supervisor.frontend_gone import FrontendGoneError, disconnected, went_away
from vfsd.supervisor.log_collector import VMM
from vfsd.supervisor.patience import Patience
from vfsd.supervisor.pool_client import PoolDiedError
from vfsd.supervisor.restart_policy import RestartPolicy
from vfsd.supervisor.resume import (
    CONSUMED,
    REPLIED,
    consume_again,
    open_fds,
    sweep,
)
from vfsd.supervisor.saved_state import SavedMessage, SavedState
from vfsd.supervisor.segments import Segments
from vfsd.supervisor.session import Session
from vfsd.transport.ending_signals import ENDING
from vfsd.transport.errors import OperatorError, ProtocolError, TruncatedError, describe
from vfsd.transport.message_socket import MessageSocket, RawMessage
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.shared_memory import create_segment
from vfsd.transport.vhost_user import (
    Inflight,
    Message,
    Number,
    decode_message,
    encode_reply,
)

STATUS_CRASHED: Final = 70  # EX_SOFTWARE: the keeper creates the next supervisor
# Keep this text: Kata Containers reads stderr until it appears. Both peers log it at this level.
WAITING: Final = "Waiting for vhost-user socket connection..."
ENDS_WITH_VMM: Final = "the share ends as well, because --keep-listening is not given"


class EndedError(Exception):
    """The previous supervisor had ended the share, and may have left processes to be killed."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def supervise(boot: Boot, keeper: int, is_successor: bool) -> int:
    """Run as the supervisor; returns the exit status of the program."""
    confine_supervisor(boot.options.seccomp)
    service = Service(boot, keeper)
    try:
        status = service.run(is_successor)
    except StopError:
        if service.leave_vm():
            return 0
        status = 0
    except EndedError as ended:
        status = ended.status
    except OperatorError as error:
        boot.log.write("error", str(error))
        status = error.status
    except Exception as error:
        # An error of ours: leave everything as it is, so that the next supervisor can go on.
        boot.log.write("error", f"the supervisor failed: {describe(error)}")
        return STATUS_CRASHED
    service.end(status)
    return status


class Service:
    def __init__(self, boot: Boot, keeper: int) -> None:
        self._boot = boot
        self._keeper = keeper
        self._options = boot.options
        self._log = boot.log
        self._backend: Backend | None = None
        self._frontend: MessageSocket | None = None
        self._session = self._new_session()
        self._has_spoken = False  # the front-end has sent a message
        self._is_warned = False  # memory_hazard() was logged for this front-end
        self._is_alone = False  # the keeper is gone
        self._lost: Segments | None = None  # the tables of a sandbox that is gone
        self._ended: int | None = None  # the exit status, once the share has ended
        self._reply_start = 0  # where in the outbox the next reply belongs
        self._loop = EventLoop()

    def run(self, is_successor: bool) -> int:
        """Serve until the share ends; returns the exit status."""
        effects: list[Effect] = []
        if is_successor:
            effects = self._take_over()
        self._loop.stop_on(ENDING)
        self._watch_keeper()
        self._loop.every_turn(self._log.report_left_out)
        policy = RestartPolicy()
        while True:
            try:
                backend = self._ensure_backend()
                frontend = self._ensure_frontend()
                if effects:
                    left, effects = effects, []  # these belong to this front-end alone
                    self._carry_out(backend, frontend, left)
                    self._boot.state.mark(REPLIED)
                    self._save()
                    self._boot.report_ready()  # the service may have gone on with a kept VM
                self._talk(backend, frontend)
            except FrontendGoneError as gone:
                if (status := self._end_session(gone)) is not None:
                    return status
            except PoolDiedError as error:
                self._lose_pool(str(error), policy)

    def end(self, status: int) -> None:
        """Kill the pool. If this supervisor is killed in here, its successor goes on with that."""
        self._ended = status
        self._kill_backend()

    def leave_vm(self) -> bool:
        """With --keep-state: leave the VM to the next start of the service, and kill the pool. If
        no VM is connected, return False."""
        if not self._boot.store or self._frontend is None:
            return False
        backend, self._backend = self._backend, None
        if backend:
            self._lost = backend.pool.segments
        self._save()
        if backend:
            backend.kill()
        return True

    def _kill_backend(self) -> None:
        backend, self._backend = self._backend, None
        self._save()  # first: a successor must not take over a pool that is half killed
        if backend:
            backend.kill()

    def _new_session(self) -> Session:
        return Session(self._options.request_queues + 1, self._options.tag)

    def _watch_keeper(self) -> None:
        if os.getppid() != self._keeper:
            self._is_alone = True
            return
        fd = os.pidfd_open(self._keeper)

        def lost() -> None:
            self._loop.unregister(fd)
            self._is_alone = True
            if self._frontend is None:
                raise StopError
            self._log.write("warn", "the keeper is gone; ending when the VMM goes away")

        self._loop.register(fd, lost)

    # The pool and the front-end, which must exist before a message can be handled.

    def _ensure_backend(self) -> Backend:
        if self._backend is None:
            self._backend = Backend.start(self._context())
            self._save()
        return self._backend

    def _context(self) -> BackendContext:
        patience = Patience(self._loop, self._log)
        patience.give_up = self._check_frontend
        boot = self._boot
        return BackendContext(
            self._loop, boot.launcher, boot.options, boot.device, self._log, patience
        )

    def _check_frontend(self) -> None:
        """Raise FrontendGoneError if the VMM closed its end, even if messages are still unread."""
        if self._frontend is None:
            return
        poll = select.poll()
        poll.register(self._frontend.fileno(), select.POLLRDHUP)
        if poll.poll(0):
            raise went_away(" while the sandbox was slow")

    def _ensure_frontend(self) -> MessageSocket:
        if self._frontend is None:
            self._frontend = _unblocking(self._accept())
            self._save()
        return self._frontend

    def _accept(self) -> socket.socket:
        if self._is_alone:
            raise StopError
        listener = self._boot.listener
        self._boot.report_ready()
        if not listener.listening:
            return listener.socket
        self._log.write("info", f"{WAITING} on {listener.place}")
        self._loop.wait_readable(listener.socket.fileno())
        connection, _ = listener.socket.accept()
        return connection

    def _end_session(self, gone: FrontendGoneError) -> int | None:
        """Forget the front-end; returns the exit status, None if another VMM may connect."""
        assert self._frontend is not None
        if gone.status:  # QEMU does not notice a closed connection, but prints a line on an error
            for vring in self._session.vrings:
                signal_error(vring.err_fd)
        ended, fds, backend = self._frontend, self._session.fds(), self._backend
        is_probe = not self._has_spoken and self._boot.listener.listening
        self._frontend, self._session, self._has_spoken = None, self._new_session(), False
        self._is_warned = False
        if not is_probe:
            self._backend = None  # its pool has the fds and files of a guest that is gone
            is_kept = self._options.keep_listening and not self._is_alone
            self._ended = None if is_kept else gone.status
        self._save()  # before the fds are closed: their numbers may soon be those of other files
        ended.close()
        close_fds(fds)
        if not is_probe:
            ends = not gone.status and self._ended is not None and self._boot.listener.listening
            why = f"{gone}; {ENDS_WITH_VMM}" if ends else str(gone)
            self._log.write("error" if gone.status else "info", why)
            if backend:
                backend.kill()
        return self._ended

    def _lose_pool(self, reason: str, policy: RestartPolicy) -> None:
        """Prepare to start another pool; OperatorError if another pool would not help."""
        if self._has_spoken:
            raise OperatorError(f"{reason}; the guest's open files are lost, so the share ends")
        if not policy.may_restart(time.monotonic()):
            raise OperatorError(f"{reason}; too many pools died within seconds; giving up")
        self._log.write("error", f"{reason}; starting another pool")
        self._kill_backend()

    # The messages of the front-end.

    def _talk(self, backend: Backend, frontend: MessageSocket) -> None:
        """Handle messages until the front-end has gone, which raises FrontendGoneError."""
        while True:
            self._loop.wait_readable(frontend.fileno())
            try:
                raw = frontend.peek()
            except BlockingIOError:
                continue
            except (ConnectionError, TruncatedError):  # the VMM was killed
                raw = None
            except (OSError, ProtocolError) as error:
                raise disconnected(error) from None
            if raw is None:
                raise went_away()
            self._has_spoken = True
            effects = self._handle(raw)
            self._save(effects, raw)
            frontend.consume()
            self._boot.state.mark(CONSUMED)
            self._carry_out(backend, frontend, effects)
            self._boot.state.mark(REPLIED)
            if any(isinstance(effect, Prepare | Apply) for effect in effects):
                self._save()

    def _handle(self, raw: RawMessage) -> list[Effect]:
        try:
            message = decode_message(raw.header, raw.payload, raw.fds)
            check_fds(message)
            return [*self._hazards(message), *self._session.handle(message)]
        except ProtocolError as error:
            close_fds(raw.fds)
            return self._refuse(raw, error)

    def _refuse(self, raw: RawMessage, error: ProtocolError) -> list[Effect]:
        try:
            return self._session.refuse(raw.header, error)
        except ProtocolError:
            raise disconnected(error) from None

    def _hazards(self, message: Message) -> list[Effect]:
        """A warning, once per front-end, if its memory makes more files reachable by handles."""
        if self._is_warned or not (self._backend and self._backend.pool.opens_handles):
            return []
        hazard = memory_hazard(message)
        self._is_warned = hazard is not None
        return [Log("warn", hazard)] if hazard else []

    def _carry_out(self, backend: Backend, frontend: MessageSocket, effects: list[Effect]) -> None:
        try:
            for effect in effects:
                self._carry_out_one(backend, frontend, effect, effects)
        except ConnectionError:
            raise went_away() from None
        except OSError as error:
            raise disconnected(error.strerror) from None

    def _carry_out_one(
        self, backend: Backend, frontend: MessageSocket, effect: Effect, effects: list[Effect]
    ) -> None:
        match effect:
            case Log(level, text):
                self._log.write(level, text, VMM)
            case Prepare(index):
                backend.prepare(index)
            case Apply():
                if backend.share_fds(self._session):
                    self._save(effects)
                backend.apply(self._session)
            case EndFuseSession():
                backend.end_fuse_session()
            case Close(fds):
                close_fds(fds)
            case Reply(data):
                self._reply(frontend, data)
            case ReplyBase(index):
                self._reply(frontend, self._session.base_reply(index).data)
            case ReplyInflight(inflight):
                _send_inflight(frontend, inflight)

    def _reply(self, frontend: MessageSocket, data: bytes) -> None:
        self._boot.outbox.send(frontend.socket, data, self._reply_start)

    # Handing over to another supervisor; see resume.py.

    def _save(self, effects: Sequence[Effect] = (), raw: RawMessage | None = None) -> None:
        self._reply_start = self._boot.outbox.start()
        message = SavedMessage(raw.header.number, raw.header.flags, raw.payload) if raw else None
        self._save_with_fds(
            SavedState(
                reply_start=self._reply_start,
                frontend=self._frontend.fileno() if self._frontend else None,
                has_spoken=self._has_spoken,
                ended=self._ended,
                session=self._session.snapshot(),
                pool=self._backend.pool.saved() if self._backend else None,
                lost=self._lost,
                effects=tuple(effects),
                message=message,
            )
        )

    def _save_with_fds(self, state: SavedState) -> None:
        """Save a state, and have systemd keep the fds of this state; see fd_store.py."""
        store = self._boot.store
        if store is None:
            self._boot.state.save(state)
            return
        fds = state.kept_fds()
        store.hold(fds)
        self._boot.state.save(replace(state, labels=store.labels))
        store.release(fds)

    def _take_over(self) -> list[Effect]:
        """Go on where another supervisor died; returns the effects that it had not carried out."""
        saved, stage = self._boot.state.load()
        if self._boot.store:
            self._boot.store.resume(saved.labels, saved.kept_fds())
        self._lost = saved.lost
        if saved.pool is None:
            self._kill_siblings()
        if saved.ended is not None:
            raise EndedError(saved.ended)
        accepted = self._sweep(saved)
        if saved.pool:
            self._backend = Backend.restore(self._context(), saved.pool)
        if saved.frontend is not None:
            return self._resume_session(saved, saved.frontend, stage)
        if accepted is not None:
            self._frontend = _unblocking(socket.socket(fileno=accepted))
        return []

    def _sweep(self, saved: SavedState) -> int | None:
        """Close the fds that the other supervisor had open and did not save. Returns the fd of a
        connection that it had accepted and not saved, or None."""
        keep = {0, 1, 2, *self._boot.kept_fds}
        if saved.pool:
            keep |= saved.pool.fds()
        if saved.lost:
            keep |= set(saved.lost.own_fds())
        accepted = None
        if saved.frontend is not None:
            keep |= {saved.frontend, *Session.restore(saved.session).fds()}
        elif (accepted := self._boot.listener.accepted(open_fds() - keep)) is not None:
            keep.add(accepted)
        self._loop.close()
        orphans = sweep(keep)
        self._loop = EventLoop()
        text = f"took over from a supervisor that died; closed {len(orphans)} fds that it left open"
        self._log.write("warn", text)
        return accepted

    def _resume_session(self, saved: SavedState, frontend: int, stage: int) -> list[Effect]:
        self._session = Session.restore(saved.session)
        self._frontend = MessageSocket(socket.socket(fileno=frontend))
        self._has_spoken = saved.has_spoken
        self._reply_start = saved.reply_start
        if saved.message and stage < CONSUMED:
            consume_again(self._frontend.socket, saved.message)
        rest = saved.effects if stage < REPLIED else ()
        return [Apply(), *(effect for effect in rest if not isinstance(effect, Close | Apply))]

    def _kill_siblings(self) -> None:
        """Kill processes that a supervisor started before it died, and did not save."""
        if os.getppid() != self._keeper:
            return  # the keeper is gone, and the children of our new parent are not ours
        for process in descendants(self._keeper):
            if process.pid not in (os.getpid(), self._boot.launcher.pid):
                process.kill(self._boot.launcher.kill)


def _unblocking(connection: socket.socket) -> MessageSocket:
    connection.setblocking(False)
    return MessageSocket(connection)


def _send_inflight(frontend: MessageSocket, inflight: Inflight) -> None:
    fd = create_segment("vfsd-inflight", inflight.mmap_size)
    try:
        frontend.send(encode_reply(Number.GET_INFLIGHT_FD, inflight), [fd])
    finally:
        os.close(fd)
