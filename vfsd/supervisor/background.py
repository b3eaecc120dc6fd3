# SPDX-License-Identifier: Apache-2.0
"""--daemonize: the launched process waits until its child serves, and says how that went.

The child leads a session of its own and is the keeper from then on. Its 0, 1 and 2 become
/dev/null at once, so that who reads the launched process's output sees its end; what is logged
until a VMM can connect still reaches the real stderr, as the only place where a start that fails is
looked for.
"""

import contextlib
import os
from dataclasses import dataclass

from vfsd.supervisor.log_collector import Sink, descriptor_sink


@dataclass(frozen=True)
class Background:
    """In the child: how to reach who started it. Both fds stay open, as /dev/null in the end, so
    that their numbers cannot become somebody else's under another supervisor. `null` is opened at
    the start: a supervisor may not open it."""

    parent: int
    stderr: int
    null: int

    def ready(self) -> None:
        """A VMM can connect: the launched process may end. Nothing happens the second time."""
        with contextlib.suppress(BrokenPipeError):  # killed: it does not wait any more
            os.write(self.parent, b"\0")
        for fd in (self.parent, self.stderr):
            os.dup2(self.null, fd, inheritable=False)

    def sink(self, log: Sink) -> Sink:
        """`log`, and stderr until ready()."""
        early = descriptor_sink(self.stderr)

        def both(level: str, line: bytes) -> bool:
            is_told = early(level, line)
            return log(level, line) or is_told

        return both


def daemonize(keeps_stderr: bool) -> Background:
    """Go on in a child. `keeps_stderr`: the log goes there and stays there."""
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
    """Wait until the child serves or has failed; the exit status that says so."""
    if os.read(reader, 1):
        return 0
    return max(1, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
