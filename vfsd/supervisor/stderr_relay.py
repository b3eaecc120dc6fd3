# SPDX-License-Identifier: Apache-2.0
"""Reads the stderr of a pool and its workers from a pipe, and logs it line by line.

Pool and workers do not inherit the supervisor's stderr. An inherited stderr would be an fd of the
file system that the operator's log is on, and with a file handle every file of that file system can
be opened through such an fd. Besides, an attacker who takes over a worker could write to the
operator's terminal.

These write to the pipe: Python before the pool is ready, glibc and the compiler's checks before
they abort, and a worker that ends with an exception. All of them write a few lines and end. So a
source of many lines is hostile, and the budget (LINES) is small. Without budget the pipe is not
read. The write end is non-blocking, so a process that fills the pipe loses what it writes (EAGAIN)
and does not wait.

The read end is in the fd table that keeper and supervisor share, so it outlives a supervisor. A
process that writes does not find the pipe closed (SIGPIPE, EPIPE) between two supervisors.
"""

import math
import os
import time
from typing import Final

from vfsd.supervisor.event_loop import EventLoop
from vfsd.supervisor.log_collector import LogCollector
from vfsd.transport.control_messages import printable
from vfsd.transport.rate_limit import Bucket, Rate

SOURCE: Final = "stderr of the pool"
LINE_BYTES: Final = 512  # a longer line is logged in pieces
LINES: Final = Rate(burst=24, per_second=0.1)  # a traceback has at most 24 lines
READ_BYTES: Final = 4096
LAST_READS: Final = 16  # of READ_BYTES: 64 KiB, the capacity of a pipe


def stderr_pipe() -> tuple[int, int]:
    """A pipe that blocks neither end: the fds to read from and to write to."""
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


class StderrRelay:
    """Logs what arrives at `fd`, the read end of a pipe, which it owns from now on."""

    def __init__(self, loop: EventLoop, log: LogCollector, fd: int) -> None:
        self.fd = fd
        self._loop = loop
        self._log = log
        self._begun = b""  # the beginning of a line whose end has not arrived
        self._budget = Bucket(LINES)
        self._dropped = 0  # lines
        self._is_watched = False
        self._is_over = False
        loop.every_turn(self._watch)

    def close(self) -> None:
        """Log the rest of the pipe, as far as the budget allows, and close the pipe."""
        self._loop.no_more_turns(self._watch)
        self._unwatch()
        for _ in range(LAST_READS):
            if not self._read():
                break
        self._take(b"\n" if self._begun else b"")
        self._report_dropped()
        os.close(self.fd)

    def _watch(self) -> float:
        """Start to read the pipe if there is budget; otherwise return the seconds until then."""
        if self._is_watched or self._is_over:
            return math.inf
        if pause := self._budget.seconds_until(1, time.monotonic()):
            return pause
        self._loop.register(self.fd, self._on_readable)
        self._is_watched = True
        return math.inf

    def _unwatch(self) -> None:
        if self._is_watched:
            self._loop.unregister(self.fd)
            self._is_watched = False

    def _on_readable(self) -> None:
        self._read()

    def _read(self) -> bool:
        """Read the pipe once; False if there is nothing to read."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return False
        self._take(data)
        self._is_over = not data
        if self._is_over or not self._budget.has(1, time.monotonic()):
            self._unwatch()
        return bool(data)

    def _take(self, data: bytes) -> None:
        *lines, self._begun = (self._begun + data).split(b"\n")
        pieces = [piece for line in lines for piece in _pieces(line)]
        if len(self._begun) >= LINE_BYTES:
            *begun, self._begun = _pieces(self._begun)
            pieces += begun
        for piece in pieces:
            self._log_line(piece)

    def _log_line(self, line: bytes) -> None:
        if not self._budget.take(1, time.monotonic()):
            self._dropped += 1
            return
        self._report_dropped()
        text = printable(line.decode(errors="backslashreplace"))
        self._log.write("warn", text, SOURCE)

    def _report_dropped(self) -> None:
        if self._dropped:
            self._log.write("warn", f"{self._dropped} more lines were dropped", SOURCE)
            self._dropped = 0


def _pieces(line: bytes) -> list[bytes]:
    return [line[i : i + LINE_BYTES] for i in range(0, max(1, len(line)), LINE_BYTES)]
