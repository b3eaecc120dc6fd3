# SPDX-License-Identifier: Apache-2.0
"""The supervisor's part in answering operators: starts the process that answers, and obeys it.

THEORY

Purpose. Operators ask a running daemon about its share, change settings, and follow its log. The
supervisor must never wait for an operator's program, and must not parse what it sends. So the
supervisor only watches a listening socket. When a client connects, the supervisor clones a process,
the control process, which accepts the connections, and ends when there have been none for some
seconds (control_server.py). A share that no operator looks at costs one fd more, and no process, no
thread and no wake-up.

Trust. The control process has what keeper and supervisor have left to themselves (confinement.py):
no privileges, no files. It has no fd of a guest either, since it has an fd table of its own and
closes what it inherits, and no mapping by which the workers are led. It asks the supervisor for the
facts, and for fds of the tables that cannot be used to write to them, each time that a client wants
to know; it has the supervisor carry out the few ORDERS. Whatever it sends, an order is a small JSON
object with a level or a slot, and the number of orders is limited by ORDERS_RATE: a control process
that asks for more, or breaks the protocol, is killed.

Nothing waits. The supervisor's end of the channel does not block. An answer that does not fit means
that the control process hangs, and it is killed; a log line that does not fit is dropped. At most
one control process exists. When it has ended, the socket is watched again after PAUSE_SECONDS, so
that clients that make it end again and again cannot keep the supervisor busy.

Death. The kernel kills the control process when its supervisor dies (PDEATHSIG); clients that were
connected get no answer, and ask again: their connections wait in the backlog of the socket, which
the next supervisor watches. What an operator has set is in a record that outlives supervisors
(control_record.py).
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from vfsd.supervisor.boot import Boot
from vfsd.supervisor.clones import create_apart
from vfsd.supervisor.control_facts import View, facts, latest, tables
from vfsd.supervisor.control_process import ControlProcess
from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.keeper_watch import KeeperWatch
from vfsd.supervisor.log_collector import RecentLine
from vfsd.supervisor.signals import hold_signals
from vfsd.transport.control_messages import LOG_THRESHOLDS, Content, number
from vfsd.transport.ending_signals import ENDING
from vfsd.transport.errors import OperatorError, ProtocolError, describe
from vfsd.transport.fd_channel import MAX_PACKET, FdChannel, Packet
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.rate_limit import Bucket, Rate

PAUSE_SECONDS: Final = 0.2
ORDERS_RATE: Final = Rate(burst=500, per_second=200)  # control_server.py asks at a lower rate

Answer = tuple[Any, list[int]]  # a result that JSON can represent, and fds that are then closed


class ControlPlane:
    """Watches the socket for operators. `view()`: what the service has at the moment."""

    def __init__(
        self, boot: Boot, keeper: KeeperWatch, loop: EventLoop, view: Callable[[], View]
    ) -> None:
        self._boot = boot
        self._keeper = keeper
        self._loop = loop
        self._view = view
        self._channel: FdChannel | None = None  # to the control process
        self._pid = 0
        self._pidfd = -1
        self._listen_at = math.inf
        self._orders: dict[str, Callable[[Content], Answer]] = {
            "describe": self._describe,
            "recent-log": self._recent_log,
            "follow": self._follow,
            "set-log-level": self._set_log_level,
            "restart-worker": self._restart_worker,
            "stop": self._stop,
        }

    def start(self) -> None:
        record = self._boot.control_record
        record.note_supervisor()
        if self._boot.log.level != record.log_level:
            self._boot.log.set_level(record.log_level)
        if self._boot.control:
            self._listen_at = 0.0
            self._loop.every_turn(self._tick)

    def _tick(self) -> float:
        """Watch the socket when that is due; returns the seconds until then."""
        if (left := self._listen_at - time.monotonic()) > 0:
            return left
        self._listen_at = math.inf
        assert self._boot.control
        self._loop.register(self._boot.control.socket.fileno(), self._begin)
        return math.inf

    def _begin(self) -> None:
        """A client has connected: create the control process."""
        assert self._boot.control
        self._loop.unregister(self._boot.control.socket.fileno())
        ours, theirs = FdChannel.pair()
        process = ControlProcess(self._boot, theirs, os.getpid())
        hold_signals()  # the clone has the supervisor's handlers at first
        try:
            self._pid = create_apart(process.run)
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            self._boot.log.write("warn", f"operators get no answer: {error.strerror}")
            ours.close()
            self._listen_at = time.monotonic() + PAUSE_SECONDS
        else:
            ours.socket.setblocking(False)
            self._channel, self._rate = ours, Bucket(ORDERS_RATE)
            self._loop.register(ours.fileno(), self._receive)
            self._loop.register(self._pidfd, self._ended)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        theirs.close()

    def _ended(self) -> None:
        """The control process has ended, or its channel is closed."""
        self._hang_up()
        self._loop.unregister(self._pidfd)
        os.close(self._pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._pid, self._pidfd = 0, -1
        self._listen_at = time.monotonic() + PAUSE_SECONDS

    def _hang_up(self) -> None:
        """Close the channel, and kill the control process if it has not ended."""
        channel, self._channel = self._channel, None
        self._boot.log.follow = lambda _: None
        if channel is not None:
            self._loop.unregister(channel.fileno())
            channel.close()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    # Orders of the control process; the event loop calls these.

    def _receive(self) -> None:
        assert self._channel
        try:
            packet = self._channel.receive()
            if packet is None:
                self._hang_up()
                return
            self._obey(packet)
        except BlockingIOError:
            return
        except Exception as error:  # also an error of ours: the share must not notice
            why = error if isinstance(error, OSError | ProtocolError) else describe(error)
            self._boot.log.write("warn", f"the control process is killed: {why}")
            self._hang_up()

    def _obey(self, packet: Packet) -> None:
        if not self._rate.take(1, time.monotonic()):
            raise ProtocolError("it sends orders without end")
        content = packet.content
        order = self._orders.get(str(content.get("order")))
        if order is None:
            raise ProtocolError("an order is not known")
        fds: list[int] = []
        answer: Content = {"id": number(content, "id", 1 << 53)}
        try:
            result, fds = order(content)
            answer["result"] = result
        except OperatorError as refused:
            answer["error"] = str(refused)
        self._send(answer, fds)

    def _send(self, content: Content, fds: list[int]) -> None:
        assert self._channel
        try:
            self._channel.send(content, fds)
        except BlockingIOError:
            raise OSError(0, "it does not read its answers") from None
        finally:
            close_fds(fds)

    def _describe(self, _order: Content) -> Answer:
        view = self._view()
        return facts(self._boot, view, self._keeper.pid), tables(view)

    def _recent_log(self, _order: Content) -> Answer:
        """As many of the latest lines as a packet has room for."""
        return latest(self._boot.log.recent, MAX_PACKET - 1024), []

    def _follow(self, order: Content) -> Answer:
        self._boot.log.follow = self._pass_on if order.get("on") is True else lambda _: None
        return None, []

    def _pass_on(self, line: RecentLine) -> None:
        with contextlib.suppress(OSError, ValueError):  # the line is dropped
            if self._channel:
                self._channel.send({"line": line.encode()})

    def _set_log_level(self, order: Content) -> Answer:
        level = order.get("level")
        if level not in LOG_THRESHOLDS:
            levels = ", ".join(LOG_THRESHOLDS)
            raise OperatorError(f"the log level must be one of {levels}")
        self._boot.control_record.set_log_level(str(level))
        self._boot.log.write("info", f"an operator has set the log level to {level}")
        self._boot.log.set_level(str(level))
        if backend := self._view().backend:
            backend.show_log_level()
        return None, []

    def _restart_worker(self, order: Content) -> Answer:
        backend, slot = self._view().backend, order.get("slot")
        alive = backend.pool.spawned - backend.pool.ended if backend else set()
        if backend is None or type(slot) is not int or slot not in alive:
            raise OperatorError("there is no such worker; vfsd status names the workers")
        self._boot.log.write("info", f"an operator has worker {slot} created again")
        backend.pool.kill_worker(slot)
        return None, []

    def _stop(self, _order: Content) -> Answer:
        self._boot.log.write("info", "an operator ends the share")
        if not self._keeper.end_share():
            raise OperatorError("the keeper has just died; try again")
        return None, []
