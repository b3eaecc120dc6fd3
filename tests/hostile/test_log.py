# SPDX-License-Identifier: Apache-2.0
"""A guest or its VMM does again and again something that is worth a line in the host's log."""

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode

from .daemon import Daemon, wait_until
from .driver import F_VERSION_1, SET_FEATURES, SET_VRING_NUM, Frontend, NoReplyError
from .fuse import INIT_IN, Guest, Op
from .injector import Injector, Killed

TIMES = 10000
MOST = 24576  # bytes of log: the bursts of all sources; a flood of hours adds 4 KiB a minute


@pytest.fixture
def daemon(sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    with Daemon("--keep-listening", mode=sandbox_mode) as running:
        yield running


def flood(act: Callable[[], object], times: int = TIMES) -> None:
    """Do something again and again."""
    for _ in range(times):
        act()


def test_init_in_a_loop(daemon: Daemon) -> None:
    with Frontend(daemon.socket).setup() as frontend:
        guest = Guest(frontend)
        flood(guest.init)
        wait_until(
            lambda: "the guest has mounted the share" in daemon.log.read_text(), 10, "a line"
        )
        assert daemon.log.read_text().count("the guest has mounted the share") == 1


def test_a_guest_without_features(daemon: Daemon) -> None:
    """Hermit offers no flag."""
    with Frontend(daemon.socket).setup() as frontend:
        Guest(frontend).init(minor=31, flags=0)
        wait_until(lambda: "mounted the share: FUSE 7.31" in daemon.log.read_text(), 10, "a line")
        assert "FUSE 7.31, no features\n" in daemon.log.read_text()


@in_each_mode
def test_init_and_destroy_in_a_loop(daemon: Daemon) -> None:
    with Frontend(daemon.socket).setup() as frontend:
        guest = Guest(frontend)

        def mount() -> None:
            guest.init()
            guest.call(Op.DESTROY, 0)

        flood(mount)
        text = daemon.log.read_text()
        assert 1 <= text.count("the guest has unmounted the share") <= 12
        assert len(text) < MOST


def test_a_bad_init_in_a_loop(daemon: Daemon) -> None:
    with Frontend(daemon.socket).setup() as frontend:
        guest = Guest(frontend)
        minors = iter(range(1 << 30))

        def refuse() -> None:
            body = INIT_IN.pack(7, next(minors) % 27, 0, 0, 0)
            guest.ask(Op.INIT, 0, body)

        flood(refuse)
        assert len(daemon.log.read_text()) < MOST


@in_each_mode
def test_a_ring_that_is_broken_in_a_loop(daemon: Daemon) -> None:
    with Frontend(daemon.socket).setup(2) as frontend:

        def break_ring() -> None:
            ring = frontend.rings[1]
            ring.publish(ring.avail_idx + 500)
            ring.kick()
            wait_until(lambda: bool(err_written(ring.err_fd)), 10, "the ring is broken")
            frontend.restart_ring(1)

        flood(break_ring, 200)
        text = daemon.log.read_text()
        assert 1 <= text.count("is broken and stopped") <= 12
        assert len(text) < MOST


def err_written(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_a_vmm_that_is_refused_in_a_loop(daemon: Daemon) -> None:
    with Frontend(daemon.socket).setup() as frontend:
        numbers = iter(range(1 << 30))

        def refuse() -> None:
            assert frontend.ack(SET_VRING_NUM, struct.pack("<II", next(numbers) % 7 + 90, 128))

        flood(refuse)
        text = daemon.log.read_text()
        assert 1 <= text.count("VMM: error: refused") <= 12
        assert len(text) < MOST


def test_a_vmm_that_comes_again_and_again(daemon: Daemon) -> None:
    def disconnect() -> None:
        with Frontend(daemon.socket) as frontend:
            frontend.send(SET_FEATURES, struct.pack("<Q", F_VERSION_1 | 1 << 60))
            with pytest.raises(NoReplyError):
                frontend.receive()

    flood(disconnect, 25)
    text = daemon.log.read_text()
    assert 1 <= text.count("disconnected the VMM") <= 12
    assert len(text) < MOST


@in_each_mode
def test_what_a_worker_says_hides_nothing_that_it_does(daemon: Daemon) -> None:
    """A worker can write on the pool's channel, in the pool's name, until the pool's budget of
    lines is used up."""
    with Frontend(daemon.socket).setup(1) as frontend:
        Guest(frontend).init()
        pid = daemon.the("worker 0")
        with Injector(pid) as worker:
            channel = next(fd for fd in worker.fds() if is_seqpacket(worker, fd))
            for size in [900] * 26 + [20] * 50:
                line = json.dumps({"log": os.urandom(size // 2).hex(), "level": "error"})
                assert worker.call("write", channel, line, len(line)) == len(line)
            with pytest.raises(Killed):
                worker.call("execve", "/", None, None)
        wait_until(lambda: daemon.titled("worker 0") == [], 10, "the worker is dead")
        said = "error: worker 0 died (signal 31); not created again"
        wait_until(lambda: said in daemon.log.read_text(), 5, "the death is in the log")


def is_seqpacket(worker: Injector, fd: int) -> bool:
    kind, size = bytearray(4), bytearray(struct.pack("=I", 4))
    done = worker.call("getsockopt", fd, socket.SOL_SOCKET, socket.SO_TYPE, kind, size)
    return done == 0 and kind == struct.pack("=I", socket.SOCK_SEQPACKET)
