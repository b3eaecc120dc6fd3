# SPDX-License-Identifier: Apache-2.0
"""The death of a launcher is noticed, whenever its deputy takes over."""

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.launcher_record import LauncherRecord
from vfsd.supervisor.launcher_watch import REPLACED, LauncherWatch
from vfsd.supervisor.log_collector import LogCollector

SECONDS = 5.0


def test_a_deputy_that_takes_over_during_a_look_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deaths are counted first, and then the launcher is looked up: the deputy takes over between
    the two. Nothing else would wake the event loop."""
    first, second = (subprocess.Popen(["sleep", "1000"]) for _ in range(2))
    record = LauncherRecord()
    record.note_launcher(first.pid, 0)
    lines: list[bytes] = []
    log = LogCollector("vm", "warn", lambda _, line: not lines.append(line))  # type: ignore[func-returns-value]
    launcher = SimpleNamespace(record=record, is_lost=lambda: False)
    boot: Any = SimpleNamespace(launcher=launcher, log=log)
    named: list[bool] = []
    loop = EventLoop()
    LauncherWatch(boot, loop, lambda: named.append(True))
    loop.turn(0.0)
    take = record.take_unlogged

    def take_early() -> int:
        unlogged = take()
        record.note_launcher(second.pid, 1)
        return unlogged

    monkeypatch.setattr(record, "take_unlogged", take_early)
    is_noticed = loop.wait(lambda: bool(lines), SECONDS)
    for process in (first, second):
        process.kill()
        process.wait()
        loop.turn(0.0)  # closes the pidfd of the process
    assert is_noticed
    assert REPLACED.encode() in lines[0]
    assert named == [True]
