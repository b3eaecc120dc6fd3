# SPDX-License-Identifier: Apache-2.0
"""Where every log line of an instance ends up: stderr, or syslog. Never waits for its reader.

QEMU's main loop waits for the supervisor, so the supervisor must not wait for whoever reads its
log: what does not fit at once is dropped, and the number of lines lost is told later.
"""

import os
import select
import socket
from collections.abc import Callable
from typing import Final

from vfsd.transport.control_messages import is_logged

MAX_LINE: Final = 2048  # bytes; a pipe that poll() calls writable takes as much (PIPE_BUF)
SYSLOG_PATH: Final = "/dev/log"
_SYSLOG_DAEMON: Final = 3 << 3
_SEVERITY: Final = {"error": 3, "warn": 4, "info": 6, "debug": 7}
_PREFIX: Final = {"error": "error: ", "warn": "warning: ", "info": "", "debug": "debug: "}

Sink = Callable[[str, bytes], bool]  # level, line -> False if it was dropped


class LogCollector:
    """Writes what is at least as urgent as `level`, each line with its origin."""

    def __init__(self, name: str, level: str, sink: Sink) -> None:
        self.name = name
        self.level = level
        self._sink = sink
        self._lost = 0

    def write(self, level: str, text: str, source: str = "") -> None:
        """Log `text`; `source` is the process it comes from, if not the supervisor."""
        if not is_logged(level, self.level):
            return
        if self._lost and self._line("warn", f"{self._lost} log lines were lost", ""):
            self._lost = 0
        if not self._line(level, text, source):
            self._lost += 1

    def _line(self, level: str, text: str, source: str) -> bool:
        origin = f"{self.name}: {source}: " if source else f"{self.name}: "
        line = (origin + _PREFIX[level] + text).encode(errors="backslashreplace")
        return self._sink(level, line[:MAX_LINE])


def descriptor_sink(fd: int) -> Sink:
    """One line to `fd`, if whoever reads it keeps up."""

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
    """Sends each line to the syslog daemon; lines are lost while there is none."""

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
