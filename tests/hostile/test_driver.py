# SPDX-License-Identifier: Apache-2.0
"""The driver against other back-ends: our daemon is tested with what they accept as correct."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import packages

from .daemon import Daemon
from .driver import F_EVENT_IDX, F_INDIRECT, Frontend
from .fuse import ROOT, Guest, Op, names

PEERS = {
    "c": lambda: (*packages.c_virtiofsd().argv, "-f"),
    "rust": lambda: packages.rust_virtiofsd().argv,
}
SYSTEM_C = Path("/usr/lib/qemu/virtiofsd")

pytestmark = pytest.mark.peer


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    if request.param == "c" and SYSTEM_C.exists():
        program: tuple[str, ...] = (str(SYSTEM_C), "-f")
    else:
        program = PEERS[request.param]()
    with Daemon(program=program) as running:
        yield running


@pytest.mark.parametrize("features", [0, F_INDIRECT, F_EVENT_IDX, F_INDIRECT | F_EVENT_IDX])
def test_an_ordinary_session(peer: Daemon, features: int) -> None:
    with Frontend(peer.socket) as frontend:
        frontend.setup(1, features=features)
        guest = Guest(frontend, indirect=bool(features & F_INDIRECT))
        assert guest.init().max_write >= 4096
        home = guest.mkdir(ROOT, b"home").nodeid
        entry, fh = guest.create(home, b"x")
        data = os.urandom(5000)
        assert guest.write(entry.nodeid, fh, 3, data, pieces=(40, 40, 100)) == len(data)
        assert (peer.share / "home/x").read_bytes() == bytes(3) + data
        assert guest.read(entry.nodeid, fh, 3, 5000, pieces=(50, 100)) == data
        assert {e.name for e in guest.list(home)} == {b".", b"..", b"x"}
        assert {e.name for e in guest.list(home, plus=True)} == {b".", b"..", b"x"}
        guest.release(entry.nodeid, fh)
        guest.call(Op.UNLINK, home, names(b"x"))
        guest.forget(entry.nodeid)
        assert guest.ask(Op.LOOKUP, home, names(b"x")).error


def test_many_requests_at_once(peer: Daemon) -> None:
    with Frontend(peer.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        for _ in range(5):
            waiting = [guest.submit(Op.GETATTR, ROOT, bytes(16), room=104) for _ in range(100)]
            assert {guest.finish(pending).error for pending in waiting} == {0}


def test_rings_stop_and_start(peer: Daemon) -> None:
    with Frontend(peer.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.getattr(ROOT)
        assert frontend.stop_ring(1) == 2
        frontend.rings[1].clear()
        frontend.start_ring(frontend.rings[1])
        guest.getattr(ROOT)
