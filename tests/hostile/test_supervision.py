# SPDX-License-Identifier: Apache-2.0
"""Nothing gives up: whichever process dies, and however often, the share is served again."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.waiting import HANG

from .conftest import OPTIONS
from .daemon import Daemon
from .driver import Frontend
from .fuse import ROOT, Guest

POOLS = 7  # deaths; five were too many once


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(*OPTIONS) as running:
        yield running


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_pools_that_die_before_a_vmm_speaks_are_replaced_for_ever(daemon: Daemon) -> None:
    daemon.await_pool()
    for _ in range(POOLS):
        pool = psutil.Process(daemon.the("pool"))
        kill(pool.pid)
        assert not psutil.wait_procs([pool], HANG)[1]
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        guest.getattr(ROOT)
    assert "starting another pool in 0.05 s, after 4 deaths in a row" in daemon.log.read_text()
