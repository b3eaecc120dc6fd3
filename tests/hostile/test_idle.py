# SPDX-License-Identifier: Apache-2.0
"""A VM that does nothing costs nothing: no process of its daemon wakes up."""

import re
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.waiting import LOADED

from .daemon import Daemon
from .driver import Frontend
from .fuse import ROOT, Guest

IDLE_SECONDS = 4.0
SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\t(\d+)$", re.MULTILINE)


def context_switches(daemon: Daemon) -> dict[str, int]:
    """Context switches by thread of the daemon's processes; a thread that sleeps on adds none."""
    found = {}
    for process in daemon.processes():
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(FileNotFoundError):
                counts = map(int, SWITCHES.findall((thread / "status").read_text()))
                found[f"{process.cmdline()[0].strip()}, thread {thread.name}"] = sum(counts)
    return found


def wakeups(daemon: Daemon) -> dict[str, int]:
    """Wake-ups by thread, during IDLE_SECONDS."""
    before = context_switches(daemon)
    time.sleep(IDLE_SECONDS)
    woken = {who: n - before.get(who, 0) for who, n in context_switches(daemon).items()}
    return {who: n for who, n in woken.items() if n}


def assert_asleep(daemon: Daemon) -> None:
    """A process that wakes up more often than every IDLE_SECONDS never lets this check pass. Work
    that is done once, after something happened, may come late on a loaded machine."""
    seen: list[dict[str, int]] = []
    while not seen or seen[-1]:
        assert len(seen) < LOADED, f"processes wake up again and again: {seen}"
        seen.append(wakeups(daemon))


def test_nothing_wakes_up_while_no_vm_has_come() -> None:
    with Daemon("--keep-listening") as daemon:
        assert_asleep(daemon)


@pytest.mark.parametrize("handles", ["never", "prefer"])
def test_nothing_wakes_up_after_work_on_every_queue(handles: str) -> None:
    with (
        Daemon("--workers=4", f"--inode-file-handles={handles}") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        (daemon.share / "file").write_bytes(b"x" * 4096)
        guest = Guest(frontend.setup(4))
        guest.init()
        for queue in range(1, 5):
            guest.lookup(ROOT, b"file", queue)
        assert_asleep(daemon)
        guest.lookup(ROOT, b"file", 3)
        assert_asleep(daemon)
