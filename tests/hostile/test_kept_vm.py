# SPDX-License-Identifier: Apache-2.0
"""--keep-state: all processes of the daemon die, and the next daemon goes on with the VM."""

import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import run
from typing import Final

import pytest

from tests.conftest import require
from tests.sandbox_modes import USER
from tests.waiting import HANG, wait_until
from vfsd.supervisor.kept_vm import STATE
from vfsd.supervisor.resume import BYTES, CONSUMED, HALF, LAYOUT
from vfsd.supervisor.saved_state import SavedState
from vfsd.supervisor.state_holder import fetch_fds
from vfsd.transport.saved_record import SavedRecord
from vfsd.transport.shared_memory import create_segment

from .driver import GET_FEATURES, GET_PROTOCOL_FEATURES, Frontend, NoReplyError
from .fuse import ROOT, Guest
from .service_manager import Service

ROUNDS: Final = 5
VFSD: Final = str(Path(sys.executable).parent / "vfsd")


@pytest.fixture(params=["systemd", "folder"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with Service(keeps_state=request.param == "systemd") as running:
        yield running
    wait_until(lambda: not running.holders(), 10, "the state holder has ended")


@pytest.fixture
def systemd() -> Iterator[Service]:
    with Service() as running:
        yield running


@pytest.fixture
def held() -> Iterator[Service]:
    with Service(keeps_state=False) as running:
        yield running


@pytest.mark.parametrize("keeps_state", [True, False])
def test_the_vm_of_another_user_than_root_goes_on(keeps_state: bool) -> None:
    require("root")
    service = Service(keeps_state=keeps_state, uid=USER)
    with service, Frontend(service.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        file, fh = guest.create(ROOT, b"file")
        assert (service.share / "file").stat().st_uid == USER
        service.kill()
        service.restart()
        assert guest.write(file.nodeid, fh, 0, b"data") == 4
        assert (service.share / "file").read_bytes() == b"data"
        assert {uid for holder in service.holders() for uid in holder.uids()} <= {USER}
        assert bool(service.holders()) != keeps_state
    wait_until(lambda: not service.holders(), 10, "the state holder has ended")


def test_a_connection_outlives_all_processes(service: Service) -> None:
    with Frontend(service.socket) as frontend:
        frontend.setup(2)
        for _ in range(ROUNDS):
            service.kill()
            service.restart()
            frontend.send(GET_FEATURES)
            assert frontend.receive().number == GET_FEATURES


def test_the_vm_of_an_upgraded_daemon_outlives_all_processes(service: Service) -> None:
    with Frontend(service.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        file, fh = guest.create(ROOT, b"file")
        for size in range(4, 12, 4):
            keeper = int(Path(f"{service.socket}.pid").read_text())
            done = run([VFSD, "upgrade", str(keeper)], check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            wait_until(lambda: len(service.titled("supervisor")) == 1, 10, "the old one has ended")
            service.titled("supervisor")[0].kill()
            frontend.restart_ring(1)  # by another supervisor, which stores other eventfds
            service.kill()
            service.restart()
            assert guest.write(file.nodeid, fh, size - 4, b"data") == 4
        assert (service.share / "file").read_bytes() == b"datadata"
    wait_until(lambda: len(service.stored) <= 2, 10, "only the state is stored")


def test_a_message_is_answered_by_the_next_daemon(service: Service) -> None:
    with Frontend(service.socket) as frontend:
        frontend.setup(1)
        service.kill()
        frontend.send(GET_FEATURES)
        service.restart()
        assert frontend.receive().number == GET_FEATURES


def test_a_reply_is_not_sent_again(held: Service) -> None:
    """All processes die when the reply has been sent, and that has not been noted yet."""
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        frontend.send(GET_FEATURES)
        frontend.receive()
        held.kill()
        for name, fd in fetch_fds(str(held.state)):
            if name == STATE:
                os.pwrite(fd, struct.pack("=Q", CONSUMED), 2 * HALF + 8)  # the stage
            os.close(fd)
        held.restart()
        frontend.send(GET_PROTOCOL_FEATURES)
        assert frontend.receive().number == GET_PROTOCOL_FEATURES


def test_a_service_that_is_stopped_leaves_the_vm_in_the_store(service: Service) -> None:
    with Frontend(service.socket) as frontend:
        frontend.setup(1)
        assert service.stop() == 0
        frontend.send(GET_FEATURES)
        service.restart()
        assert frontend.receive().number == GET_FEATURES


def test_an_fd_of_another_name_is_left_in_the_store_and_named(systemd: Service) -> None:
    with Frontend(systemd.socket) as frontend:
        frontend.setup(1)
        systemd.kill()
        systemd.stored.append(("other", os.eventfd(0)))
        systemd.restart()
        frontend.send(GET_FEATURES)
        assert frontend.receive().number == GET_FEATURES
        assert "left in its fd store: ['other']" in systemd.log.read_text()
        assert "other" in dict(systemd.stored)


def test_without_a_vm_nothing_is_kept(service: Service) -> None:
    service.kill()
    service.restart()
    wait_until(service.listens, 10, "the daemon listens")
    with Frontend(service.socket) as frontend:
        Guest(frontend.setup(1)).init()


def test_what_a_vm_no_longer_uses_leaves_the_store(systemd: Service) -> None:
    """Two connections one after the other, and many changes of memory and eventfds."""
    counts = set()
    for _ in range(3):
        with Frontend(systemd.socket) as frontend:
            frontend.setup(2)
            for _ in range(20):
                frontend.set_memory()
                frontend.restart_ring(1)
            counts.add(len(systemd.stored))
        wait_until(lambda: len(systemd.stored) <= 2, 10, "only the state is left")
    assert len(counts) == 1, counts


def test_a_vm_that_went_away_meanwhile_is_forgotten(service: Service) -> None:
    with Frontend(service.socket) as frontend:
        frontend.setup(1)
        service.kill()
    service.restart()
    with Frontend(service.socket) as frontend:
        Guest(frontend.setup(1)).init()


def test_a_vm_of_which_an_fd_is_missing_is_given_up(systemd: Service) -> None:
    """systemd keeps a limited number of fds. The connection of such a VM is closed, and the next
    one is served."""
    with Frontend(systemd.socket) as frontend:
        frontend.setup(1)
        systemd.kill()
        os.close(systemd.stored.pop()[1])
        systemd.restart()
        assert [name for name, _ in systemd.stored] == ["vfsd-state", "vfsd-outbox"]
        with Frontend(systemd.socket) as other:
            guest = Guest(other.setup(1))
            guest.init()
            guest.getattr(ROOT)
        with pytest.raises(NoReplyError):
            frontend.receive()


# The state holder.


def test_there_is_one_holder_for_all_daemons(held: Service) -> None:
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        (holder,) = held.holders()
        held.kill()
        held.restart()
        assert held.holders() == [holder]
        frontend.send(GET_FEATURES)
        assert frontend.receive().number == GET_FEATURES


def test_a_holder_ends_with_its_daemon_if_no_vm_is_connected(held: Service) -> None:
    (holder,) = held.holders()
    held.stop()
    holder.wait(HANG)


def test_a_holder_ends_with_its_vm_if_no_daemon_lives(held: Service) -> None:
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        (holder,) = held.holders()
        held.kill()
        assert holder.is_running()
    holder.wait(HANG)


def test_a_holder_that_was_killed_is_replaced_by_the_next_daemon(held: Service) -> None:
    (holder,) = held.holders()
    holder.kill()
    held.kill()
    held.restart()
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        held.kill()
        held.restart()
        frontend.send(GET_FEATURES)
        assert frontend.receive().number == GET_FEATURES


@pytest.mark.parametrize(
    "message",
    [b"", b"\xff" * 300, b"FDSTORE=1", b"FDNAME=vfsd-state", b"FDSTOREREMOVE=1", b"=\n=", b"\0"],
)
def test_a_holder_ignores_what_is_not_a_message(held: Service, message: bytes) -> None:
    (holder,) = held.holders()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message, str(held.state / "notify"))
    for sent in (b"", b"X", b"F", b"FF"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(held.state / "holder"))
            sock.send(sent)
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        held.kill()
        held.restart()
        frontend.send(GET_FEATURES)
        assert frontend.receive().number == GET_FEATURES
    assert held.holders() == [holder]


def test_a_holder_has_no_privileges(held: Service) -> None:
    require("root")
    (holder,) = held.holders()
    assert holder.uids().effective != 0
    status = Path(f"/proc/{holder.pid}/status").read_text()
    assert "CapPrm:\t0000000000000000\n" in status
    assert "Seccomp:\t2\n" in status


def test_the_sockets_of_a_holder_are_for_their_owner_alone(held: Service) -> None:
    for name in ("holder", "notify"):
        assert stat.S_IMODE((held.state / name).stat().st_mode) == 0o600


def spoil(held: Service, content: bytes) -> None:
    """Have the holder keep another state, as a supervisor that was taken over can."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(str(held.state / "notify"))
        sock.send(b"FDSTOREREMOVE=1\nFDNAME=vfsd-state")
        fd = create_segment("vfsd-supervisor-state", BYTES)
        os.pwrite(fd, content, 0)
        socket.send_fds(sock, [b"FDSTORE=1\nFDNAME=vfsd-state"], [fd])
        os.close(fd)


def written(content: object, layout: object = LAYOUT) -> bytes:
    """The bytes of a state with any content."""
    memory = bytearray(2 * HALF)
    SavedRecord(memoryview(memory), HALF).save([layout, content])
    return bytes(memory)


NOT_OURS: Final = {
    "nothing": b"",
    "no text": b"\xff" * 4096,
    "a list": written([]),
    "no fields": written({}),
    "wrong types": written(SavedState().encode() | {"frontend": "3", "labels": 7}),
    "other tables": written(SavedState().encode(), [LAYOUT[0], LAYOUT[1] + 1]),
    "large numbers": written(SavedState().encode() | {"frontend": 7, "labels": [[1 << 40, 1]]}),
    "negative numbers": written(SavedState().encode() | {"frontend": 7, "labels": [[-1, 1]]}),
    "standard fds": written(SavedState().encode() | {"frontend": 2, "labels": [[2, 1], [0, 1]]}),
}


@pytest.mark.parametrize("what", NOT_OURS)
def test_a_state_that_cannot_be_is_no_state(held: Service, what: str) -> None:
    with Frontend(held.socket) as frontend:
        frontend.setup(1)
        held.kill()
        spoil(held, NOT_OURS[what])
        held.restart()
    with Frontend(held.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.getattr(ROOT)
    assert "cannot be taken up" in held.log.read_text()
