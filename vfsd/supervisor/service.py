# SPDX-License-Identifier: Apache-2.0
"""The service of a share: connects one pool with one front-end at a time.

The flow is a straight line: start a pool, wait for a front-end, handle its messages until it goes
away. Everything else (the pool's events, workers' logs, signals) happens in the event loop while
that line waits. Each front-end gets a pool of its own, so no data of one guest is left for the next
guest.
"""

import select
import socket
import time
from collections.abc import Sequence
from typing import Final

from vfsd.supervisor.backend import Backend, BackendContext, signal_error
from vfsd.supervisor.boot import Boot
from vfsd.supervisor.control_facts import View
from vfsd.supervisor.control_plane import ControlPlane
from vfsd.supervisor.dialer import Dialer
from vfsd.supervisor.effects import (
    Apply,
    Close,
    Device,
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
from vfsd.supervisor.inflight_record import send_record
from vfsd.supervisor.inheritance_sweep import sweep_after
from vfsd.supervisor.keeper_watch import KeeperWatch
from vfsd.supervisor.launcher_watch import LauncherWatch
from vfsd.supervisor.log_collector import VMM
from vfsd.supervisor.patience import Patience
from vfsd.supervisor.pool_errors import PoolDiedError, PoolTakenOverError, StartLostError
from vfsd.supervisor.rebuilding import rebuild
from vfsd.supervisor.restart_policy import GrowingPause, RestartPolicy
from vfsd.supervisor.resume import CONSUMED, REPLIED, consume_again
from vfsd.supervisor.saved_state import LostPool, SavedMessage, SavedState
from vfsd.supervisor.session import Session
from vfsd.supervisor.siblings import Siblings
from vfsd.supervisor.state_holder_watch import watch_state_holder
from vfsd.transport.ending_signals import ENDING
from vfsd.transport.errors import OperatorError, ProtocolError, TruncatedError
from vfsd.transport.message_socket import MessageSocket, RawMessage
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.vhost_user import Message, decode_message

# Keep this text: Kata Containers reads stderr until it appears. Both peers log it at this level.
WAITING: Final = "Waiting for vhost-user socket connection..."
LOST_PAUSE_MAX: Final = 1.0  # seconds
ENDS_WITH_VMM: Final = "the share ends as well, because --keep-listening is not given"


class Service:
    def __init__(self, boot: Boot, keeper: KeeperWatch) -> None:
        self._boot = boot
        self._keeper = keeper
        self._options = boot.options
        self._log = boot.log
        self._backend: Backend | None = None
        self._frontend: MessageSocket | None = None
        self._session = self._new_session()
        self._has_spoken = False  # the front-end has sent a message
        self._has_had_pool = False  # a pool was ready: options and share are in order
        self._is_warned = False  # memory_hazard() was logged for this front-end
        self._ended: int | None = None  # the exit status, once the share has ended
        self._reply_start = 0  # where in the outbox the next reply belongs
        self._left: list[Effect] = []  # of the message that is being handled
        self._applied = Device()  # what the workers serve
        self._lost: LostPool | None = None  # a dead pool with a session that goes on
        self._owed: frozenset[int] = frozenset()  # slots whose worker the next pool has to create
        self._pause = GrowingPause(LOST_PAUSE_MAX)  # between two sandboxes that are lost
        self._siblings = Siblings(boot.launcher)
        self._loop = EventLoop()
        self._control = ControlPlane(boot, keeper, self._loop, self._view)
        self._dialer = Dialer(boot.launcher, self._log, boot.listener.path or "")

    def run(self, is_successor: bool) -> int:
        """Serve until the share ends; returns the exit status."""
        effects: list[Effect] = []
        if is_successor:
            effects = self._take_over()
        self._loop.stop_on(ENDING)
        self._keeper.start(self._loop, self._check_keeper_needed)
        self._control.start()
        LauncherWatch(self._boot, self._loop, self._keeper.name)
        watch_state_holder(self._boot, self._loop)
        if self._frontend:
            self._keeper.ready()  # the other supervisor may have died before systemd was notified
        self._loop.every_turn(self._log.report_left_out)
        policy = RestartPolicy(self._options.give_up_after)
        while True:
            try:
                backend = self._ensure_backend()
                frontend = self._ensure_frontend()
                if effects:
                    left, effects = effects, []  # these belong to this front-end alone
                    self._carry_out(backend, frontend, left)
                    self._boot.state.mark(REPLIED)
                    self._save()
                self._boot.state.note_taken(0)
                self._talk(backend, frontend)
            except FrontendGoneError as gone:
                effects = []
                if (status := self._end_session(gone)) is not None:
                    return status
            except PoolDiedError as error:
                effects = self._lose_pool(error, policy)

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
            self._lost = backend.pool.lost(self._owed)
        self._save(self._left)
        if backend:
            backend.bury()
        return True

    def _kill_backend(self) -> None:
        backend, self._backend = self._backend, None
        self._save()  # first: a successor must not take over a pool that is half killed
        if backend:
            backend.kill()

    def _view(self) -> View:
        """For operators."""
        frontend = self._frontend.fileno() if self._frontend else None
        return View(self._backend, frontend, self._session.device)

    def _new_session(self) -> Session:
        return Session(self._options.request_queues + 1, self._options.tag)

    def _check_keeper_needed(self) -> None:
        """Raise StopError if the daemon ends with its keeper: a tool that has started a share for
        one VMM, and ends it before the VMM comes, kills the process that it has started (Kata)."""
        if not self._has_spoken and not self._options.keep_listening:
            raise StopError

    # The pool and the front-end, which must exist before a message can be handled.

    def _ensure_backend(self) -> Backend:
        if self._backend is None and self._lost:
            self._rebuild(self._lost)
        if self._backend is None:
            self._backend = self._start_backend()
            self._has_had_pool = True
            self._save()
        return self._backend

    def _start_backend(self) -> Backend:
        """Start a pool. OperatorError if the pool reports that it cannot work, or if the first pool
        dies: the installation is wrong then. A later pool may die of a shortage that passes."""
        try:
            return Backend.start(self._context())
        except PoolDiedError as error:
            if self._has_had_pool or isinstance(error, StartLostError):
                raise
            raise OperatorError(str(error)) from None

    def _rebuild(self, lost: LostPool) -> None:
        """Have another pool take the place of the pool that died (rebuilding.py)."""
        backend = rebuild(self._context(), lost, self._siblings, self._pause)
        self._backend, self._lost = backend, None
        self._save(self._left)
        lost.segments.close()
        backend.take_up(self._applied, sorted(lost.spawned))
        self._owed = frozenset()
        self._save(self._left)

    def _context(self) -> BackendContext:
        patience = Patience(self._loop, self._log)
        patience.give_up = self._check_frontend
        boot, loop = self._boot, self._loop
        return BackendContext(loop, boot.launcher, boot.options, boot.device, self._log, patience)

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
        listener = self._boot.listener
        self._keeper.ready()
        if not listener.socket:
            return socket.socket(fileno=self._dialer.dial(self._loop))
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
        self._dialer.hung_up(self._has_spoken)
        self._frontend, self._session, self._has_spoken = None, self._new_session(), False
        lost, self._lost = self._lost, None
        self._left, self._applied, self._owed = [], Device(), frozenset()
        self._is_warned = False
        if not is_probe:
            self._backend = None  # its pool has the fds and files of a guest that is gone
            self._ended = None if self._options.keep_listening else gone.status
        self._save()  # before the fds are closed: their numbers may soon be those of other files
        ended.close()
        close_fds(fds)
        if lost:
            self._siblings.kill()
            lost.segments.close()
        if not is_probe:
            ends = not gone.status and self._ended is not None and self._boot.listener.listening
            why = f"{gone}; {ENDS_WITH_VMM}" if ends else str(gone)
            self._log.write("error" if gone.status else "info", why)
            if backend:
                backend.kill()
        return self._ended

    def _lose_pool(self, reason: PoolDiedError, policy: RestartPolicy) -> list[Effect]:
        """Prepare to start another pool; OperatorError if another pool would not help. Returns the
        effects that are to be carried out with that pool."""
        self._boot.control_record.note_lost()
        if self._has_spoken and isinstance(reason, PoolTakenOverError):
            raise OperatorError(f"{reason}; so it was taken over, and the share ends")
        if self._has_spoken:
            return self._keep_session(reason)
        restart = policy.after_death(time.monotonic())
        if restart is None:
            raise OperatorError(f"{reason}; {policy.surrender('the pool')}")
        if restart.note is not None:
            self._log.write("error", f"{reason}; starting another pool{restart.note}")
        self._kill_backend()
        self._loop.wait(lambda: False, restart.pause)
        return []

    def _keep_session(self, reason: PoolDiedError) -> list[Effect]:
        """The sandbox died while a guest had a session, which is to go on in another sandbox."""
        backend, self._backend = self._backend, None
        assert backend is not None
        text = f"{reason}; another sandbox is built, in which the guest's session goes on"
        self._log.write("error", text)
        self._lost = backend.pool.lost(self._owed)
        self._owed = self._lost.spawned
        self._left = [Apply(), *(effect for effect in self._left if effect != Apply())]
        self._save(self._left)  # first: a successor goes on with the session too
        backend.bury()
        return self._left

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
        self._left = list(effects)
        try:
            while self._left:
                self._carry_out_one(backend, frontend, self._left[0])
                self._left.pop(0)
        except ConnectionError:
            raise went_away() from None
        except OSError as error:
            raise disconnected(error.strerror) from None

    def _carry_out_one(self, backend: Backend, frontend: MessageSocket, effect: Effect) -> None:
        match effect:
            case Log(level, text):
                self._log.write(level, text, VMM)
            case Prepare(index):
                backend.prepare(index)
            case Apply():
                if backend.share_fds(self._session.device):
                    self._save(self._left)
                backend.apply(self._session)
                self._applied = self._session.device
            case EndFuseSession():
                backend.end_fuse_session()
            case Close(fds):
                close_fds(fds)
            case Reply(data):
                self._reply(frontend, data)
            case ReplyBase(index):
                self._reply(frontend, self._session.base_reply(index).data)
            case ReplyInflight(inflight):
                send_record(frontend, inflight)

    def _reply(self, frontend: MessageSocket, data: bytes) -> None:
        self._boot.outbox.send(frontend.socket, data, self._reply_start)

    # Handing over to another supervisor; see resume.py.

    def _save(self, effects: Sequence[Effect] = (), raw: RawMessage | None = None) -> None:
        if raw or not effects:  # otherwise the reply may have been sent, in part or as a whole
            self._reply_start = self._boot.outbox.start()
        message = SavedMessage(raw.header.number, raw.header.flags, raw.payload) if raw else None
        self._boot.save(
            SavedState(
                reply_start=self._reply_start,
                frontend=self._frontend.fileno() if self._frontend else None,
                has_spoken=self._has_spoken,
                ended=self._ended,
                has_had_pool=self._has_had_pool,
                session=self._session.snapshot(),
                pool=self._backend.pool.saved() if self._backend else None,
                lost=self._lost,
                effects=tuple(effects),
                message=message,
            )
        )

    def _take_over(self) -> list[Effect]:
        """Go on where another supervisor died; returns the effects that it had not carried out."""
        saved, stage = self._boot.state.load()
        self._has_had_pool = saved.has_had_pool
        if self._boot.store:
            self._boot.store.resume(saved.labels, saved.kept_fds())
        if saved.pool is None:
            self._siblings.kill()
        accepted = sweep_after(self._boot, saved)
        self._lost = saved.lost
        if saved.pool:
            self._backend = Backend.restore(self._context(), saved.pool)
        if saved.frontend is not None:
            return self._resume_session(saved, saved.frontend, stage)
        if accepted is not None:
            self._frontend = _unblocking(socket.socket(fileno=accepted))
        return []

    def _resume_session(self, saved: SavedState, frontend: int, stage: int) -> list[Effect]:
        self._session = Session.restore(saved.session)
        self._frontend = MessageSocket(socket.socket(fileno=frontend))
        self._has_spoken = saved.has_spoken
        self._reply_start = saved.reply_start
        self._applied = self._session.device
        if saved.message and stage < CONSUMED:
            consume_again(self._frontend.socket, saved.message)
        rest = saved.effects if stage < REPLIED else ()
        self._left = [Apply(), *(one for one in rest if not isinstance(one, Close | Apply))]
        return self._left


def _unblocking(connection: socket.socket) -> MessageSocket:
    connection.setblocking(False)
    return MessageSocket(connection)
