# SPDX-License-Identifier: Apache-2.0
"""--keep-state: what a supervisor that was taken over leaves behind does not keep the next daemon
from starting and serving."""

import os
import signal
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Final

import psutil
import pytest

from tests.waiting import wait_until
from vfsd.supervisor.fd_store import name_of
from vfsd.supervisor.kept_vm import OUTBOX, STATE
from vfsd.supervisor.resume import BYTES, HALF, OUTBOX_BYTES, StateFile
from vfsd.supervisor.state_holder import fetch_fds
from vfsd.supervisor.supervise import TRIES
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.saved_record import SavedRecord
from vfsd.transport.shared_memory import create_segment

from .driver import GET_FEATURES, Frontend, NoReplyError
from .fuse import ROOT, Guest
from .service_manager import Service

LABEL_AT: Final = BYTES - 9  # the last label, before the last byte
Content = dict[str, Any]


@pytest.fixture
def held() -> Iterator[Service]:
    with Service(keeps_state=False) as running:
        yield running


@contextmanager
def kept(held: Service) -> Iterator[dict[str, int]]:
    """What the state holder keeps of a VM, after all processes of the daemon have died."""
    fds = dict(fetch_fds(str(held.state)))
    try:
        yield fds
    finally:
        close_fds(fds.values())


def store(held: Service, name: str, fd: int) -> None:
    """Have the holder keep `fd` in the place of what it keeps under this name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(str(held.state / "notify"))
        sock.send(f"FDSTOREREMOVE=1\nFDNAME={name}".encode())
        socket.send_fds(sock, [f"FDSTORE=1\nFDNAME={name}".encode()], [fd])


def store_bytes(held: Service, name: str, content: bytes) -> None:
    fd = create_segment("vfsd-test", len(content))
    os.pwrite(fd, content, 0)
    store(held, name, fd)
    os.close(fd)


def serves_another_vm(held: Service) -> None:
    with Frontend(held.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.getattr(ROOT)


def as_text(text: bytes) -> bytes:
    """The bytes of a state with this text."""
    head = struct.pack("=QII", 1, len(text), zlib.crc32(text, zlib.crc32(struct.pack("<Q", 1))))
    return bytes(HALF) + (head + text).ljust(BYTES - HALF, b"\0")


BYTES_NOT_OURS: Final = {
    "deep": (STATE, as_text(b"[" * (HALF - 100))),
    "short state": (STATE, bytes(2 * HALF)),
    "long state": (STATE, bytes(BYTES + 1)),
    "short outbox": (OUTBOX, bytes(OUTBOX_BYTES - 1)),
}


@pytest.mark.parametrize("what", BYTES_NOT_OURS)
def test_bytes_that_are_not_a_state(held: Service, what: str) -> None:
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        held.kill()
        store_bytes(held, *BYTES_NOT_OURS[what])
        held.restart()
        serves_another_vm(held)
        with pytest.raises(NoReplyError):
            frontend.receive()


def set_frontend(state: Content) -> None:
    state["frontend"] = state["session"]["vrings"][1]["kick_fd"]


def set_kick(state: Content) -> None:
    state["session"]["vrings"][1]["kick_fd"] = state["frontend"]


def set_memory(state: Content) -> None:
    state["session"]["memory"][0][4] = state["frontend"]


def set_tables(state: Content) -> None:
    segments = state["pool"]["segments"]
    segments["inodes"] = state["frontend"]


def set_slots(state: Content) -> None:
    state["pool"]["spawned"] = [10**6]


def set_queues(state: Content) -> None:
    state["session"]["queue_count"] += 1


def set_ring(state: Content) -> None:
    state["session"]["vrings"][1]["size"] = 1 << 70


def set_features(state: Content) -> None:
    state["session"]["features"] = "all"


def set_labels(state: Content) -> None:
    state["labels"] = [[fd, str(label)] for fd, label in state["labels"]]


def set_effects(state: Content) -> None:
    state["effects"] = [{"effect": "Log", "level": [], "text": {}}]


CHANGES: Final = (
    set_frontend,
    set_kick,
    set_memory,
    set_tables,
    set_slots,
    set_queues,
    set_ring,
    set_features,
    set_labels,
    set_effects,
)


@pytest.mark.parametrize("change", CHANGES)
def test_values_that_cannot_be(held: Service, change: Callable[[Content], None]) -> None:
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        held.kill()
        with kept(held) as fds:
            content = bytearray(os.pread(fds[STATE], BYTES, 0))
        record = SavedRecord(memoryview(content), HALF)
        layout, state = record.load()
        change(state)
        record.save([layout, state])
        store_bytes(held, STATE, bytes(content))
        held.restart()
        serves_another_vm(held)
        with pytest.raises(NoReplyError):
            frontend.receive()


def restart_without_sandbox(held: Service, state: StateFile) -> psutil.Process:
    """Start the daemon again, and stop its launcher before the sandbox is built. Return: the
    launcher."""
    while True:
        held.kill()
        held.restart()
        (launcher,) = held.titled("launcher")
        launcher.suspend()
        if state.tries():
            return launcher


def has_tried(state: StateFile, before: int) -> bool:
    return state.tries() > before


def test_a_vm_that_ends_each_supervisor_is_given_up(held: Service) -> None:
    """By a signal, after which no supervisor can say why it ended."""
    with Frontend(held.socket) as frontend, ExitStack() as stack:
        frontend.setup(1)
        held.kill()
        with kept(held) as fds:
            state = StateFile(os.dup(fds[STATE]))
        stack.callback(os.close, state.fd)
        held.restart()
        launcher = restart_without_sandbox(held, state)
        while (tries := state.tries()) <= TRIES:
            for victim in held.titled("supervisor"):
                with suppress(psutil.NoSuchProcess):
                    victim.send_signal(signal.SIGSEGV)
            wait_until(partial(has_tried, state, tries), 10, "the next one tries")
        for victim in held.titled("supervisor"):
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGSEGV)
        wait_until(lambda: state.tries() == 0, 10, "the VM is given up")
        launcher.resume()
        assert "the VM that an earlier daemon has left is given up" in held.log.read_text()
        serves_another_vm(held)
        with pytest.raises(NoReplyError):
            frontend.receive()


def test_a_last_label_without_end(held: Service) -> None:
    """Removing each label up to it would take for ever."""
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        held.kill()
        with kept(held) as fds:
            os.pwrite(fds[STATE], struct.pack("=Q", 1 << 62), LABEL_AT)
        held.restart()
        frontend.send(GET_FEATURES)
        assert frontend.receive().number == GET_FEATURES


def test_two_fds_of_one_name(held: Service) -> None:
    """Neither is taken: it is not known which of the two is meant."""
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        held.kill()
        with kept(held) as fds, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            name = max(fds.keys() - {STATE, OUTBOX})
            sock.connect(str(held.state / "notify"))
            fd = os.eventfd(0)
            socket.send_fds(sock, [f"FDSTORE=1\nFDNAME={name}".encode()], [fd])
            os.close(fd)
        held.restart()
        serves_another_vm(held)
        with pytest.raises(NoReplyError):
            frontend.receive()
        held.kill()
        wait_until(lambda: not held.holders(), 10, "the state holder has ended")


@pytest.mark.parametrize("name", [b"", b"x", b"vfsd-\xff", b"vfsd-" + b"\xff" * 200, b"vfsd-\0"])
def test_names_that_are_not_ours(held: Service, name: bytes) -> None:
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(str(held.state / "notify"))
            fd = os.eventfd(0)
            socket.send_fds(sock, [b"FDSTORE=1\nFDNAME=" + name], [fd])
            os.close(fd)
        held.kill()
        held.restart()
        frontend.send(GET_FEATURES)
        assert frontend.receive().number == GET_FEATURES


def test_a_store_that_is_full(held: Service) -> None:
    """What the VM does not need is removed."""
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        held.kill()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(str(held.state / "notify"))
            for number in range(10_000, 13_000):
                fd = os.eventfd(0)
                socket.send_fds(sock, [f"FDSTORE=1\nFDNAME={name_of(number)}".encode()], [fd])
                os.close(fd)
        held.restart()
        frontend.send(GET_FEATURES)
        assert frontend.receive().number == GET_FEATURES
        held.kill()
        with kept(held) as fds:
            assert len(fds) < 100
