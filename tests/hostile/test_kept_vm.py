# SPDX-License-Identifier: Apache-2.0
"""--keep-state=systemd: all processes of the daemon die, and the next one goes on with the VM."""

import os
from collections.abc import Iterator
from typing import Final

import pytest

from tests.waiting import wait_until

from .driver import GET_FEATURES, Frontend, NoReplyError
from .fuse import ROOT, Guest
from .service_manager import Service

ROUNDS: Final = 5


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as running:
        yield running


def test_a_connection_outlives_all_processes(service: Service) -> None:
    with Frontend(service.socket) as frontend:
        frontend.setup(2)
        for _ in range(ROUNDS):
            service.kill()
            service.restart()
            frontend.send(GET_FEATURES)
            assert frontend.receive().number == GET_FEATURES


def test_a_message_is_answered_by_the_next_daemon(service: Service) -> None:
    with Frontend(service.socket) as frontend:
        frontend.setup(1)
        service.kill()
        frontend.send(GET_FEATURES)
        service.restart()
        assert frontend.receive().number == GET_FEATURES


def test_a_service_that_is_stopped_leaves_the_vm_in_the_store(service: Service) -> None:
    with Frontend(service.socket) as frontend:
        frontend.setup(1)
        assert service.stop() == 0
        frontend.send(GET_FEATURES)
        service.restart()
        assert frontend.receive().number == GET_FEATURES


def test_without_a_vm_nothing_is_kept(service: Service) -> None:
    service.kill()
    service.restart()
    wait_until(service.listens, 10, "the daemon listens")
    with Frontend(service.socket) as frontend:
        Guest(frontend.setup(1)).init()


def test_what_a_vm_no_longer_uses_leaves_the_store(service: Service) -> None:
    """Two connections one after the other, and many changes of memory and eventfds."""
    counts = set()
    for _ in range(3):
        with Frontend(service.socket) as frontend:
            frontend.setup(2)
            for _ in range(20):
                frontend.set_memory()
                frontend.restart_ring(1)
            counts.add(len(service.stored))
        wait_until(lambda: len(service.stored) <= 2, 10, "only the state is left")
    assert len(counts) == 1, counts


def test_a_vm_that_went_away_meanwhile_is_forgotten(service: Service) -> None:
    with Frontend(service.socket) as frontend:
        frontend.setup(1)
        service.kill()
    service.restart()
    with Frontend(service.socket) as frontend:
        Guest(frontend.setup(1)).init()


def test_a_vm_of_which_an_fd_is_missing_is_given_up(service: Service) -> None:
    """systemd keeps a limited number of fds. The connection of such a VM is closed, and the next
    one is served."""
    with Frontend(service.socket) as frontend:
        frontend.setup(1)
        service.kill()
        os.close(service.stored.pop()[1])
        service.restart()
        assert [name for name, _ in service.stored] == ["vfsd-state", "vfsd-outbox"]
        with Frontend(service.socket) as other:
            guest = Guest(other.setup(1))
            guest.init()
            guest.getattr(ROOT)
        with pytest.raises(NoReplyError):
            frontend.receive()
