# SPDX-License-Identifier: Apache-2.0
"""A file system that stops answering and continues later, as a network file system does."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.system.mounted import Mounted
from tests.waiting import wait_until


class HungMount(Mounted):
    """A FUSE mount of `source`, at folder/mnt, that can be made to hang.

    No attribute and no name of the mount is cached, so each call that needs the server waits for
    it. Data goes through the page cache: without the cache the kernel would hold the reader's own
    pages while the server hangs.
    """

    def __init__(self, folder: Path, source: Path) -> None:
        source.mkdir()
        options = ("--cache=auto", "--attr-timeout=0", "--entry-timeout=0")
        super().__init__(folder, f"--source={source}", "--queues=1", passed_on=options)
        self._hangs = False

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Answer no request from here on; at the end of the context the server continues."""
        stop(self.process.pid)
        self._hangs = True
        try:
            yield
        finally:
            self.go_on()

    def go_on(self) -> None:
        if self._hangs:
            self._hangs = False
            os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.go_on()
        super().close()


def stop(pid: int) -> None:
    """Stop a process (SIGSTOP), and return when it is stopped: a thread that runs on another CPU
    goes on until the signal has reached it."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid), what="every thread of the process is stopped")


def is_stopped(pid: int) -> bool:
    """Is each thread of this process stopped?"""
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def waits_for_a_server(pid: int) -> bool:
    """Does a thread of this process wait for the answer of a FUSE server?"""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            if state == "D" or (task / "wchan").read_text() == "request_wait_answer":
                return True
    return False
