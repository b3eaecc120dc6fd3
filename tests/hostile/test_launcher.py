# SPDX-License-Identifier: Apache-2.0
"""Play a supervisor that was taken over, on the socket of the launcher of a running daemon."""

import ctypes
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode
from tests.waiting import HANG
from vfsd.supervisor.device import DEVICE_BYTES
from vfsd.supervisor.launcher import CONNECT, KILL, MAKE_POOL, NAME_KEEPER, RENEW
from vfsd.supervisor.launcher_requests import ANSWER, REQUEST, serve
from vfsd.supervisor.pool_fds import check_fds
from vfsd.supervisor.segments import Segments
from vfsd.supervisor.spawn import spawn
from vfsd.transport.fd_channel import FdChannel
from vfsd.transport.job import POOL_FDS
from vfsd.transport.shared_memory import create_segment

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Guest
from .hung import stop
from .injector import fds

PIDFD_GETFD: Final = 438
WORKERS: Final = 2
ATTEMPTS: Final = 50
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PEER: Final = struct.Struct("=iII")


@pytest.fixture(scope="module")
def daemon(sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    options = ("--keep-listening", f"--request-queues={WORKERS}")
    with Daemon(*options, mode=sandbox_mode) as running:
        running.await_pool()
        yield running


@pytest.fixture(scope="module")
def line(daemon: Daemon) -> Iterator[socket.socket]:
    """A duplicate of the supervisor's end of the launcher's socket."""
    with _launcher_socket(daemon.the("supervisor"), daemon.process.pid) as ours:
        ours.settimeout(HANG)
        yield ours


def _launcher_socket(process: int, keeper: int) -> socket.socket:
    """A duplicate of the end of the launcher's socket that the supervisor or the launcher has."""
    pidfd = os.pidfd_open(process)
    found = []
    for path in Path(f"/proc/{process}/fd").iterdir():
        if str(path.readlink()).startswith("socket:"):
            sock = socket.socket(fileno=_LIBC.syscall(PIDFD_GETFD, pidfd, int(path.name), 0))
            found.append(sock)
    os.close(pidfd)
    # The keeper made both ends of the launcher's pair; the supervisor made both ends of a pool's
    # pair, and the launcher those of the template's.
    (ours,) = (
        sock for sock in found if sock.type == socket.SOCK_SEQPACKET and _maker(sock) == keeper
    )
    for sock in found:
        if sock is not ours:
            sock.close()
    return ours


def _maker(sock: socket.socket) -> int:
    peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid: int = _PEER.unpack(peer)[0]
    return pid


def _pool_fds(stack: ExitStack) -> list[int]:
    """The fds that a pool needs, as a supervisor makes them."""
    ours, theirs = FdChannel.pair()
    stack.callback(ours.close)
    stack.callback(theirs.close)
    device = create_segment("vfsd-device", DEVICE_BYTES)
    segments = Segments.create(device, 1 << 20).fds()
    reader, stderr = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for fd in (*segments, reader, stderr):
        stack.callback(os.close, fd)
    listeners = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(WORKERS)]
    for listener in listeners:
        listener.bind("")
        listener.listen()
    return [theirs.fileno(), stderr, *segments, *(sock.fileno() for sock in listeners)]


def _replaced(fds: list[int], name: str, fd: int) -> list[int]:
    changed = list(fds)
    changed[POOL_FDS.index(name)] = fd
    return changed


def _wrong_fds(stack: ExitStack) -> dict[str, list[int]]:
    right = _pool_fds(stack)
    event = os.eventfd(0)
    file = os.open("/etc/hostname", os.O_RDONLY)
    for fd in (event, file):
        stack.callback(os.close, fd)
    unsealed = os.memfd_create("unsealed")
    stack.callback(os.close, unsealed)
    return {
        "none": [],
        "one": right[:1],
        "one too few": right[:-1],
        "one too many": [*right, event],
        "as many as a packet takes": [event] * 253,
        "the right number of others": [event] * len(right),
        "another order": right[::-1],
        "a file as stderr": _replaced(right, "stderr", file),
        "no channel": _replaced(right, "channel", event),
        "a listener as the channel": _replaced(right, "channel", right[-1]),
        "a file as a segment": _replaced(right, "inodes", file),
        "a segment that can shrink": _replaced(right, "device", unsealed),
        "a channel as a listener": [*right[:-1], right[0]],
        "two tables of a lost pool": [*right, *right[3:5]],
        "four tables of a lost pool": [*right, *right[3:7]],
        "a file as a table of a lost pool": [*right, *right[3:5], file],
    }


def test_the_fds_of_a_pool_are_a_pools() -> None:
    with ExitStack() as stack:
        fds = _pool_fds(stack)
        check_fds(fds, WORKERS)
        check_fds([*fds, *fds[3:6]], WORKERS)  # with the tables of a pool that was lost


def test_no_vmm_is_connected_to_without_the_option(line: socket.socket) -> None:
    line.send(REQUEST.pack(CONNECT, 7))
    assert ANSWER.unpack(line.recv(99)) == (7, errno.EINVAL)


@in_each_mode
def test_a_request_with_other_fds_is_refused(daemon: Daemon, line: socket.socket) -> None:
    before = _state(daemon)
    with ExitStack() as stack:
        for number, (what, fds) in enumerate(_wrong_fds(stack).items()):
            socket.send_fds(line, [REQUEST.pack(MAKE_POOL, number)], fds)
            assert ANSWER.unpack(line.recv(99)) == (number, errno.EINVAL), what
    _await_state(daemon, before)


@in_each_mode
@pytest.mark.parametrize("kind", [0, CONNECT, RENEW, 6, 255])
def test_another_kind_of_request_is_refused(daemon: Daemon, line: socket.socket, kind: int) -> None:
    before = _state(daemon)
    with ExitStack() as stack:
        socket.send_fds(line, [REQUEST.pack(kind, 7)], _pool_fds(stack))
        assert ANSWER.unpack(line.recv(99)) == (7, errno.EINVAL)
    _await_state(daemon, before)


@pytest.mark.parametrize(
    "data", [b"", b"\1", b"\1" * (REQUEST.size - 1), b"\1" * (REQUEST.size + 1), b"\1" * 60000]
)
@pytest.mark.parametrize("fd_count", [0, 1, 253])
def test_a_request_of_another_size_is_passed_over(
    daemon: Daemon, line: socket.socket, data: bytes, fd_count: int
) -> None:
    before = _state(daemon)
    if data or fd_count:  # the send(2) below makes the empty packet
        socket.send_fds(line, [data], [line.fileno()] * fd_count)
    line.send(b"")
    # The launcher has finished with the packet when it has answered the next request.
    line.send(REQUEST.pack(MAKE_POOL, 8))
    assert ANSWER.unpack(line.recv(99)) == (8, errno.EINVAL)
    _await_state(daemon, before)


def test_answers_that_nobody_reads_are_dropped() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=serve, args=(theirs, {}))
    thread.start()
    with ours, theirs:
        ours.settimeout(HANG)
        for number in range(2000):  # many more than the buffer of a socket holds
            ours.send(REQUEST.pack(0, number))
        ours.close()
        thread.join()


def test_a_process_that_ends_at_once_has_a_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of a pool may end before the launcher gets the CPU again."""
    open_pidfd = os.pidfd_open

    def open_late(pid: int) -> int:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return open_pidfd(pid)

    monkeypatch.setattr(os, "pidfd_open", open_late)
    child = os.fork()  # the forked process has no other children, and its signals are its own
    if child == 0:
        status = 1
        try:
            has_ended = bool(select.select([spawn(["/bin/true"], None, [], 2)], [], [], HANG)[0])
            status = 0 if has_ended and not _has_children() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@in_each_mode
def test_nobody_is_killed_but_children_of_the_launcher(daemon: Daemon, line: socket.socket) -> None:
    """A pool is a child of the launcher, and the supervisor may kill it anyway."""
    before = _state(daemon)
    with ExitStack() as stack:
        ours = os.pidfd_open(os.getpid())
        family = [
            os.pidfd_open(daemon.the(title)) for title in ("launcher", "supervisor", "template")
        ]
        keeper = os.pidfd_open(daemon.process.pid)
        dead = _pidfd_of_somebody_dead()
        event = os.eventfd(0)
        for fd in (ours, *family, keeper, dead, event):
            stack.callback(os.close, fd)
        for fds in ([ours], *([fd] for fd in family), [keeper], [event], [], [ours, ours]):
            socket.send_fds(line, [REQUEST.pack(KILL, 9)], fds)
            assert ANSWER.unpack(line.recv(99)) == (9, errno.EINVAL)
        socket.send_fds(line, [REQUEST.pack(KILL, 9)], [dead])
        assert ANSWER.unpack(line.recv(99))[1] != 0
    _await_state(daemon, before)


@in_each_mode
def test_the_pid_file_names_no_process_but_a_keeper(daemon: Daemon, line: socket.socket) -> None:
    """A tool ends the process that the file names."""
    file = Path(f"{daemon.socket}.pid")
    with ExitStack() as stack:
        others = [os.pidfd_open(daemon.the("launcher")), os.pidfd_open(1)]
        keeper = os.pidfd_open(daemon.process.pid)
        dead = _pidfd_of_somebody_dead()
        event = os.eventfd(0)
        for fd in (*others, keeper, dead, event):
            stack.callback(os.close, fd)
        wrong = [[dead], [event], [], [keeper, keeper]]
        if daemon.mode.uid is None:  # else the launcher has the same user id as the keeper
            wrong += [[fd] for fd in others]
        for fds in wrong:
            socket.send_fds(line, [REQUEST.pack(NAME_KEEPER, 9)], fds)
            assert ANSWER.unpack(line.recv(99))[1] != 0
            assert int(file.read_text()) == daemon.process.pid
        socket.send_fds(line, [REQUEST.pack(NAME_KEEPER, 9)], [keeper])
        assert ANSWER.unpack(line.recv(99)) == (9, 0)
    assert file.read_text() == f"{daemon.process.pid}\n"


def _pidfd_of_somebody_dead() -> int:
    dead = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(dead.pid)
    dead.wait()
    return pidfd


@in_each_mode
def test_a_pool_that_starts_is_killed_by_the_launcher(daemon: Daemon, line: socket.socket) -> None:
    """The first process of a pool is root's: the supervisor may not send it signals, so the
    launcher does. That process lives for some milliseconds, and may have ended before."""
    before = _state(daemon)
    for _ in range(ATTEMPTS):
        with ExitStack() as stack:
            socket.send_fds(line, [REQUEST.pack(MAKE_POOL, 1)], _pool_fds(stack))
            answer, (first,), *_ = socket.recv_fds(line, 99, 1)
            stack.callback(os.close, first)
            assert ANSWER.unpack(answer) == (1, 0)
            socket.send_fds(line, [REQUEST.pack(KILL, 2)], [first])
            is_killed = ANSWER.unpack(line.recv(99)) == (2, 0)
            assert select.select([first], [], [], HANG)[0]
        _await_state(daemon, before)
        if is_killed:
            return
    pytest.fail(f"each of {ATTEMPTS} processes had ended")


@in_each_mode
def test_after_all_of_this_the_next_vmm_is_served(daemon: Daemon, line: socket.socket) -> None:
    del line
    launcher = daemon.the("launcher")
    for _ in range(2):
        with Frontend(daemon.socket) as frontend:
            guest = Guest(frontend.setup(1))
            guest.init()
            guest.getattr(ROOT)
    assert daemon.titled(" launcher") == [launcher]


def test_an_answer_for_a_supervisor_that_died_is_passed_over() -> None:
    """The launcher is stopped, so that the supervisor that asks for a pool dies before the answer
    comes; the next supervisor asks again."""
    with Daemon("--keep-listening") as daemon:
        launcher = daemon.the("launcher")
        daemon.await_pool()
        before = _fds(launcher)
        stop(launcher)
        with Frontend(daemon.socket) as frontend:
            Guest(frontend.setup(1)).init()
        wait_until(lambda: not daemon.titled("pool"), 10, "the first VMM's pool is gone")
        supervisor = daemon.the("supervisor")
        with _launcher_socket(launcher, daemon.process.pid) as requests:
            wait_until(lambda: _next_kind(requests) == MAKE_POOL, 10, "a request for a pool")
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: daemon.the("supervisor") != supervisor, 10, "the next supervisor")
        os.kill(launcher, signal.SIGCONT)
        wait_until(lambda: daemon.log.read_text().count("Waiting for") == 2, 30, "the next pool")
        with Frontend(daemon.socket) as frontend:
            guest = Guest(frontend.setup(1))
            guest.init()
            guest.getattr(ROOT)
        wait_until(lambda: len(daemon.titled("pool")) == 1, 10, "one pool is left")
        wait_until(lambda: _fds(launcher) == before, 10, "the fds of the requests are closed")


def _next_kind(requests: socket.socket) -> int | None:
    """The kind of the next request that the launcher will read; None if no request waits."""
    with suppress(BlockingIOError):
        packet = requests.recv(REQUEST.size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        return int(REQUEST.unpack(packet)[0])
    return None


def _fds(pid: int) -> list[str]:
    return sorted(fds(pid).values())


def _state(daemon: Daemon) -> Any:
    """The state that must not change: the launcher, the fds it holds open, and all other
    processes."""
    launcher = daemon.the("launcher")
    return launcher, _fds(launcher), daemon.the("pool")


def _await_state(daemon: Daemon, before: Any) -> None:
    """The launcher answers a request before it closes the request's fds."""
    wait_until(lambda: _state(daemon) == before, 10, "everything is as before")
