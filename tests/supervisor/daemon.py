# SPDX-License-Identifier: Apache-2.0
"""Runs a daemon in a folder of its own, and finds its processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import psutil

from tests.waiting import HANG, wait_until

__all__ = ["FAKE", "ROOT", "Daemon", "has_ended", "wait_until"]

FAKE = (sys.executable, str(Path(__file__).with_name("daemon_with_fake_pool.py")))
ROOT = Path(__file__).resolve().parents[2]


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == "zombie"
    except psutil.NoSuchProcess:
        return True


class Daemon:
    """A virtiofsd that serves `folder`/share on `folder`/vm001.sock, until close()."""

    def __init__(self, folder: Path, *options: str, program: Sequence[str] = FAKE, **more: Any):
        self.folder = folder
        self.share = folder / "share"
        self.share.mkdir(exist_ok=True)
        self.path = folder / "vm001.sock"
        self.log = folder / "log"
        self.runtime = folder / "run"
        self.runtime.mkdir(exist_ok=True)
        sockets = () if "pass_fds" in more else (f"--socket-path={self.path}",)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*program, *sockets, f"--shared-dir={self.share}", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"RUNTIME_DIRECTORY": str(self.runtime), "PYTHONPATH": str(ROOT)},
                **more,
            )
        self.process_group = psutil.Process(self.process.pid)
        wait_until(lambda: self.process.poll() is not None or "Waiting for" in self.text() or more)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(HANG)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        print(self.text())  # shown if the test fails

    def text(self) -> str:
        return self.log.read_text()

    def end(self) -> int:
        """Wait until the daemon ends by itself; returns its exit status."""
        return self.process.wait(HANG)

    def find(self, role: str) -> psutil.Process | None:
        """The process that ps(1) shows as `vfsd: vm001 ROLE`."""
        for child in [self.process_group, *self.process_group.children(recursive=True)]:
            try:
                if "".join(child.cmdline()).startswith(f"vfsd: vm001 {role}"):
                    return child
            except psutil.Error:
                continue
        return None

    def supervisor(self) -> psutil.Process:
        wait_until(lambda: self.find("supervisor"))
        found = self.find("supervisor")
        assert found
        return found

    def kill_supervisor(self) -> None:
        """Kill the supervisor with SIGKILL and wait until it is dead; the keeper creates the next
        one."""
        victim = self.supervisor()
        victim.send_signal(signal.SIGKILL)
        wait_until(lambda: has_ended(victim))

    def report(self) -> list[dict[str, Any]]:
        """The orders that the fake pool and its workers received, and the state that they saw."""
        path = self.share / "report"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def last_seen(self, slot: int) -> dict[str, Any]:
        """The device state that the fake worker of a slot saw last."""
        return [row for row in self.report() if row.get("slot") == slot and "vrings" in row][-1]
