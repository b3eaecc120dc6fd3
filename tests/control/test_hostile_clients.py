# SPDX-License-Identifier: Apache-2.0
"""Clients that attack: neither the guest nor the supervisor notices, and an honest client is
answered.

The control process may end, which is what it is for; the next client gets another.
"""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.hostile.fuse import ROOT
from tests.hostile.injector import Injector, Killed
from tests.sandbox_modes import USER
from tests.waiting import HANG, wait_until
from vfsd.supervisor.control_server import CONNECTIONS
from vfsd.transport import zmtp
from vfsd.transport.control_messages import MAX_MESSAGE
from vfsd.transport.operator_protocol import encode_request

from .conftest import Operated

OPENING = zmtp.greeting(0) + zmtp.ready(b"DEALER")
STATUS = zmtp.encode_message(encode_request(1, "status", {}))


def connect(operated: Operated) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(operated.instance.path)  # waits while the backlog is full
    sock.settimeout(HANG)
    return sock


@contextmanager
def unnoticed(operated: Operated) -> Iterator[None]:
    """Afterwards supervisor and workers are those from before, and answer guest and operator."""
    roles = ("socket supervisor", "socket worker 0", "socket pool")
    before = [operated.daemon.the(role) for role in roles]
    yield
    operated.guest.getattr(ROOT)
    with operated.client() as client:
        assert client.status().guest
    operated.guest.getattr(ROOT)
    assert [operated.daemon.the(role) for role in roles] == before


BYTES = {
    "junk": b"GET / HTTP/1.1\r\n\r\n" * 20,
    "zeros": bytes(4096),
    "another mechanism": zmtp.greeting(0).replace(b"NULL", b"PLAI") + zmtp.ready(b"DEALER"),
    "another socket type": zmtp.greeting(0) + zmtp.ready(b"ROUTER"),
    "a message that is too long": OPENING + struct.pack(">BQ", 2, MAX_MESSAGE + 1) + bytes(100),
    "a length without end": OPENING + struct.pack(">BQ", 2, (1 << 64) - 1),
    "several frames": OPENING + b"\x01\x01x\x00\x01y",
    "not JSON": OPENING + zmtp.encode_message(b"status"),
    "deep JSON": OPENING + zmtp.encode_message(b"[" * 60000),
    "another version": OPENING + zmtp.encode_message(b'{"version":2,"id":1,"request":"status"}'),
    "no request": OPENING + zmtp.encode_message(b'{"version":1,"id":1}'),
    "a request of its own": OPENING
    + zmtp.encode_message(b'{"version":1,"id":1,"request":"describe"}'),
    "an id of its own": OPENING + zmtp.encode_message(b'{"version":1,"id":{},"request":"status"}'),
    "not a subscription": zmtp.greeting(0) + zmtp.ready(b"SUB") + zmtp.encode_message(b"\x02log"),
}


@pytest.mark.parametrize("what", BYTES)
def test_wrong_bytes_end_the_connection(operated: Operated, what: str) -> None:
    with unnoticed(operated), connect(operated) as sock:
        with suppress(OSError):
            sock.sendall(BYTES[what])
        with suppress(ConnectionResetError):
            while sock.recv(4096):
                pass


def test_arguments_of_another_kind_are_refused(operated: Operated) -> None:
    with unnoticed(operated), connect(operated) as sock:
        sock.sendall(OPENING)
        for request, arguments in (
            ("restart-worker", {"slot": []}),
            ("restart-worker", {"slot": "0"}),
            ("restart-worker", {}),
            ("restart-worker", {"slot": True}),
            ("set-log-level", {"level": {}}),
            ("set-log-level", {"level": "x" * 60000}),
        ):
            sock.sendall(zmtp.encode_message(encode_request(1, request, arguments)))
            received = b""
            while b'"error"' not in received and (data := sock.recv(4096)):
                received += data
            assert b'"error"' in received, (request, arguments)


def test_a_thousand_connections(operated: Operated) -> None:
    socks: list[socket.socket] = []
    try:
        with unnoticed(operated):
            for _ in range(1000):
                socks.append(connect(operated))
                if len(socks) % 3 == 0:
                    socks[-1].sendall(OPENING)
            (control,) = operated.daemon.titled("socket control")
            wait_until(lambda: _fds(control) <= CONNECTIONS + 20, 30, "connections are closed")
    finally:
        for sock in socks:
            sock.close()


def _fds(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def test_a_client_that_never_reads(operated: Operated) -> None:
    with unnoticed(operated), connect(operated) as sock:
        sock.sendall(OPENING)
        sock.setblocking(False)
        sent, deadline = 0, time.monotonic() + 3
        while time.monotonic() < deadline:
            try:
                sent += sock.send(STATUS * 50)
            except BlockingIOError:
                time.sleep(0.01)
        (control,) = operated.daemon.titled("socket control")
        assert psutil.Process(control).memory_info().rss < 100 << 20
        assert sent < 10 << 20


def test_a_follower_that_never_reads_loses_lines(operated: Operated) -> None:
    with unnoticed(operated), connect(operated) as sock:
        sock.sendall(zmtp.greeting(0) + zmtp.ready(b"SUB") + zmtp.encode_message(b"\x01log"))
        sock.recv(1)
        with operated.client() as client:
            for _ in range(50):
                client.set_log_level("info")


def test_requests_without_end_do_not_reach_the_guest(operated: Operated) -> None:
    """The control process answers at a bounded rate."""
    with unnoticed(operated), connect(operated) as sock:
        sock.sendall(OPENING)
        deadline, answered = time.monotonic() + 2, 0
        while time.monotonic() < deadline:
            sock.sendall(zmtp.encode_message(encode_request(1, "counters", {})))
            answered += sock.recv(1 << 16).count(b'"id":1,')
            operated.guest.getattr(ROOT)
        assert 0 < answered <= 100 + 3 * 100


@pytest.mark.parametrize("is_open", [False, True])
def test_another_user_is_not_served(operated: Operated, is_open: bool) -> None:
    """`is_open`: the folder and the socket were opened to all users, so that only the check of the
    peer is left."""
    path = operated.instance.path
    if is_open:
        Path(path).parent.chmod(0o755)
        Path(path).chmod(0o777)

    def attempt() -> int:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(HANG)
            try:
                sock.connect(path)
                sock.sendall(OPENING + STATUS)
                return 1 if sock.recv(1) else 2
            except PermissionError:
                return 3
            except ConnectionError:
                return 2

    with unnoticed(operated):
        assert _as_user(attempt) == (2 if is_open else 3)


def _as_user(attempt: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            status = attempt()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# A control process that was taken over.

SENT: dict[str, bytes] = {
    "junk": b"junk",
    "an order that is not known": b'{"id":1,"order":"execute"}',
    "an order without an id": b'{"order":"describe"}',
    "an id of another kind": b'{"id":"x","order":"describe"}',
}


@pytest.mark.parametrize("what", SENT)
def test_a_control_process_that_was_taken_over_is_killed(operated: Operated, what: str) -> None:
    with operated.client() as client:
        client.status()
        (control,) = operated.daemon.titled("socket control")
        with suppress(Killed, ProcessLookupError), Injector(control) as process:
            for fd in _sockets(control):
                process.call("sendto", fd, SENT[what], len(SENT[what]), 0x40, None, 0)
        wait_until(lambda: not psutil.pid_exists(control), 20, "it is killed")
        with unnoticed(operated):
            client.status()
    assert "the control process is killed" in operated.daemon.log.read_text()


def test_orders_without_end_end_the_control_process(operated: Operated) -> None:
    order = b'{"id":1,"order":"recent-log"}'
    with operated.client() as client:
        client.status()
        (control,) = operated.daemon.titled("socket control")
        with suppress(Killed, ProcessLookupError), Injector(control) as process:
            for _ in range(20000):
                for fd in _sockets(control):
                    if process.call("sendto", fd, order, len(order), 0x40, None, 0) < 0:
                        break
                if "the control process is killed" in operated.daemon.log.read_text():
                    break
        wait_until(lambda: not psutil.pid_exists(control), 20, "it is killed")
        with unnoticed(operated):
            client.status()


def _sockets(pid: int) -> list[int]:
    found = []
    with suppress(FileNotFoundError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(entry.readlink()).startswith("socket:"):
                    found.append(int(entry.name))
    return found


def test_it_has_no_privilege_and_nothing_of_the_guest(operated: Operated) -> None:
    with operated.client() as client:
        client.status()
        (control,) = operated.daemon.titled("socket control")
        status = Path(f"/proc/{control}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        links = [str(e.readlink()) for e in Path(f"/proc/{control}/fd").iterdir()]
        kinds = {"/dev/null", str(operated.daemon.log)}
        assert all(link in kinds or link.startswith("socket:") for link in links), links
        maps = Path(f"/proc/{control}/maps").read_text()
        assert "memfd" not in maps
