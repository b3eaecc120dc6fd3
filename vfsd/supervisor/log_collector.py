# SPDX-License-Identifier: Apache-2.0
"""Writes every log line of an instance to stderr or syslog, without waiting for the reader.

QEMU's main loop waits for the supervisor, so the supervisor must not wait for the program that
reads its log: a line that does not fit at once is dropped, and the number of lost lines is reported
later.

The amount of log is limited as well, whatever guest, VMM and workers do: each source has its limit
(transport/rate_limit.py), and all lines from the sandbox or about the VMM share one more limit. A
line of the daemon about itself is limited by its kind alone, so that the reason why the daemon ends
is always logged. The number of lines that were left out is reported with the next line of the same
kind, and once a minute in one line for all kinds.
"""

import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from vfsd.transport.control_messages import is_logged
from vfsd.transport.rate_limit import BYTES, GENEROUS, LINES, Bucket, LineLimit

MAX_LINE: Final = 2048  # bytes; less than PIPE_BUF, which a pipe that poll() calls writable takes
SYSLOG_PATH: Final = "/dev/log"
_SYSLOG_DAEMON: Final = 3 << 3
_SEVERITY: Final = {"error": 3, "warn": 4, "info": 6, "debug": 7}
_PREFIX: Final = {"error": "error: ", "warn": "warning: ", "info": "", "debug": "debug: "}

VMM: Final = "VMM"  # the source of lines about what the VMM did
_OWN: Final = ("", "keeper")  # sources of lines about the daemon itself
REPORT_SECONDS: Final = 60.0
_TOGETHER: Final = 2  # sandbox and VMM together may write this many times the limit of one source

RECENT: Final = 100  # lines that are kept for operators

Sink = Callable[[str, bytes], bool]  # level, line -> False if it was dropped
Say = Callable[[str, str], None]  # level, text: LogCollector.write() with its source


class RecentLine(NamedTuple):
    """A line that was logged. `time`: in seconds since 1970."""

    time: float
    level: str
    source: str
    text: str

    def encode(self) -> dict[str, str | float]:
        """The fields as values that JSON can represent."""
        return self._asdict()


class LogCollector:
    """Writes the lines that are at least as urgent as `level`, each with its source. `recent` has
    the lines that this process has written last, and `follow` is called with each line."""

    def __init__(
        self, name: str, level: str, sink: Sink, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.recent: deque[RecentLine] = deque(maxlen=RECENT)
        self.follow: Callable[[RecentLine], None] = lambda _: None
        self._sink = sink
        self._lost = 0
        self._clock = clock
        self._has_left_out = False
        self._report_at = 0.0
        self.set_level(level)

    def set_level(self, level: str) -> None:
        """Log lines from this level up; the limits begin again."""
        self.level = level
        self._factor = GENEROUS if level == "debug" else 1
        self._foreign = Bucket(BYTES.times(_TOGETHER * self._factor))
        self._limits: dict[str, LineLimit] = {}  # by source

    def write(self, level: str, text: str, source: str = "") -> None:
        """Log `text`, unless its source has reached its limit. `source` is the process that wrote
        the text, or VMM; empty for a line of the supervisor about itself."""
        if not is_logged(level, self.level):
            return
        admitted = self._limit(source).admit(level, text)
        if admitted is None:
            self._has_left_out = True
        else:
            self._write(level, admitted, source)

    def report_left_out(self) -> float:
        """Report how many lines were left out since the last report, if a minute has passed since
        then. Returns the seconds until the next report. For EventLoop.every_turn()."""
        if not self._has_left_out:
            return math.inf
        now = self._clock()
        if now < self._report_at:
            return self._report_at - now
        self._report_at = now + REPORT_SECONDS
        self._has_left_out = False
        left_out = sum(limit.take_left_out() for limit in self._limits.values())
        if left_out and is_logged("warn", self.level):
            self._write("warn", f"{left_out} log lines like earlier ones were left out", "")
        return math.inf

    def _limit(self, source: str) -> LineLimit:
        if source not in self._limits:
            lines = LINES.times(self._factor)
            own = Bucket(BYTES.times(self._factor))
            buckets = () if source in _OWN else (own, self._foreign)
            self._limits[source] = LineLimit(lines, buckets, self._clock)
        return self._limits[source]

    def _write(self, level: str, text: str, source: str) -> None:
        if self._lost and self._line("warn", f"{self._lost} log lines were lost", ""):
            self._lost = 0
        if not self._line(level, text, source):
            self._lost += 1
        self.recent.append(RecentLine(time.time(), level, source, text[:MAX_LINE]))
        self.follow(self.recent[-1])

    def _line(self, level: str, text: str, source: str) -> bool:
        origin = f"{self.name}: {source}: " if source else f"{self.name}: "
        line = (origin + _PREFIX[level] + text).encode(errors="backslashreplace")
        return self._sink(level, line[:MAX_LINE])


def descriptor_sink(fd: int) -> Sink:
    """A sink that writes to `fd`, and drops a line if the reader of `fd` does not keep up."""

    def write(_level: str, line: bytes) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        try:
            if not poll.poll(0):
                return False
            os.write(fd, b"vfsd: " + line + b"\n")
        except OSError:
            return False
        return True

    return write


stderr_sink: Final = descriptor_sink(2)


class SyslogSink:
    """Sends each line to the syslog daemon; lines are lost while no syslog daemon runs."""

    def __init__(self, path: str = SYSLOG_PATH) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def __call__(self, level: str, line: bytes) -> bool:
        head = f"<{_SYSLOG_DAEMON | _SEVERITY[level]}>virtiofsd[{os.getpid()}]: ".encode()
        try:
            self._socket.sendto(head + line, self._path)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()
