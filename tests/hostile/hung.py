# SPDX-License-Identifier: Apache-2.0
"""A file system that stops answering and continues later, as a network file system does."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.system.mounted import Mounted


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
        os.kill(self.process.pid, signal.SIGSTOP)
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


def waits_for_a_server(pid: int) -> bool:
    """Does a thread of this process wait for the answer of a FUSE server?"""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            if state == "D" or (task / "wchan").read_text() == "request_wait_answer":
                return True
    return False
