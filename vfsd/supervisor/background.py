# SPDX-License-Identifier: Apache-2.0
"""--daemonize: the launched process waits until its child serves, and says how that went.

The child leads a session of its own and is the keeper from then on. The fds 0, 1 and 2 of the child
become /dev/null at once, so that a program that reads the output of the launched process sees the
end of that output. Until a VMM can connect, log lines still reach the real stderr as well: an
operator looks nowhere else for the reason why a start failed.
"""

import contextlib
import os
from dataclasses import dataclass

from vfsd.supervisor.log_collector import Sink, descriptor_sink


@dataclass(frozen=True)
class Background:
    """In the child: the fds that lead to the process that started the daemon. `parent` and `stderr`
    stay open and become /dev/null in the end. If they were closed, another file could get their
    numbers, and the next supervisor would write to that file. `null` is opened at the start,
    because a supervisor may not open files."""

    parent: int
    stderr: int
    null: int

    def ready(self) -> None:
        """A VMM can connect: let the launched process end. A second call has no effect."""
        with contextlib.suppress(BrokenPipeError):  # the launched process was killed
            os.write(self.parent, b"\0")
        for fd in (self.parent, self.stderr):
            os.dup2(self.null, fd, inheritable=False)

    def sink(self, log: Sink) -> Sink:
        """A sink that writes to `log`, and to stderr as well until ready() is called."""
        early = descriptor_sink(self.stderr)

        def both(level: str, line: bytes) -> bool:
            is_written = early(level, line)
            return log(level, line) or is_written

        return both


def daemonize(keeps_stderr: bool) -> Background:
    """Fork, and return in the child. `keeps_stderr`: the log is and remains on stderr."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(writer)
        os._exit(_outcome(pid, reader))
    os.close(reader)
    os.setsid()
    os.chdir("/")
    background = Background(writer, os.dup(2), os.open(os.devnull, os.O_RDWR))
    for fd in (0, 1) if keeps_stderr else (0, 1, 2):
        os.dup2(background.null, fd)
    return background


def _outcome(pid: int, reader: int) -> int:
    """Wait until the child serves or has failed; returns the exit status for the parent."""
    if os.read(reader, 1):
        return 0
    return max(1, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
