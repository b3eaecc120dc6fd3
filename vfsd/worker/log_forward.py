# SPDX-License-Identifier: Apache-2.0
"""Log lines on their way to the supervisor, which owns stderr and syslog.

A line below the requested level is dropped here, in the sandbox, before it costs a message; and so
is a line of a kind that was sent too often (transport/rate_limit.py). Sending never blocks: while
the supervisor does not read, lines are dropped and counted.
"""

from collections.abc import Callable

from vfsd.transport.control_messages import MAX_TEXT, Content, is_logged
from vfsd.transport.rate_limit import BYTES, GENEROUS, LINES, Bucket, LineLimit


class LogForward:
    """`send` takes one message and returns False if it had to drop it."""

    def __init__(self, send: Callable[[Content], bool], level: str) -> None:
        self._send = send
        self._dropped = 0
        self.set_level(level)

    def set_level(self, level: str) -> None:
        """Log lines from this level up; ValueError if the level is unknown."""
        is_logged("error", level)
        self._level = level
        factor = GENEROUS if level == "debug" else 1
        self._limit = LineLimit(LINES.times(factor), [Bucket(BYTES.times(factor))])

    def write(self, level: str, text: str) -> None:
        if not is_logged(level, self._level):
            return
        admitted = self._limit.admit(level, text)
        if admitted is None:
            return
        text = admitted
        if self._dropped:
            text = f"{text} ({self._dropped} lines before this one were lost)"
        if self._send({"log": text[:MAX_TEXT], "level": level}):
            self._dropped = 0
        else:
            self._dropped += 1

    def error(self, text: str) -> None:
        self.write("error", text)

    def warn(self, text: str) -> None:
        self.write("warn", text)

    def info(self, text: str) -> None:
        self.write("info", text)

    def debug(self, text: str) -> None:
        self.write("debug", text)
