# SPDX-License-Identifier: Apache-2.0
"""Who is below a process: found when somebody is to be killed.

Not by psutil, which takes 1 MiB in keeper and supervisor; imported only when it is needed, at the
end of a long life, it may have been upgraded and not fit any more.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vfsd.transport.control_messages import printable


def _kill(pidfd: int) -> None:
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)


@dataclass(frozen=True)
class Process:
    """A process as it was found: the pid may be another process's by now, the start tells."""

    pid: int
    name: str
    state: str  # proc(5): "D" waits for a device or file system and takes no signal, "Z" has ended
    parent: int
    started: int  # clock ticks after boot

    def kill(self, send: Callable[[int], None] = _kill) -> None:
        """Send SIGKILL, by `send` to the pidfd; nothing happens if this process is gone."""
        with suppress(OSError):
            pidfd = os.pidfd_open(self.pid)
            try:
                if process_of(self.pid).started == self.started:
                    send(pidfd)
            finally:
                os.close(pidfd)

    def __str__(self) -> str:
        return f"{self.pid} ({printable(self.name)}, state {self.state})"


def descendants(pid: int) -> list[Process]:
    """Everything below a process; nothing if it is gone."""
    everything = _everything()
    found = {pid}
    below: list[Process] = []
    while new := [p for p in everything if p.parent in found and p.pid not in found]:
        found |= {process.pid for process in new}
        below += new
    return below


def _everything() -> list[Process]:
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                processes.append(process_of(int(entry.name)))
    return processes


def await_end(processes: Iterable[Process], seconds: float) -> None:
    """Wait until all of these have ended, `seconds` at the most."""
    poll = select.poll()
    waiting = set()
    deadline = time.monotonic() + seconds
    for process in processes:
        with suppress(OSError):  # it is gone
            fd = os.pidfd_open(process.pid)
            poll.register(fd, select.POLLIN)
            waiting.add(fd)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            waiting.remove(fd)
            os.close(fd)
    for fd in waiting:
        os.close(fd)


def process_of(pid: int) -> Process:
    """The process that has this pid now; FileNotFoundError or ProcessLookupError if none has.

    proc(5): pid, name in parentheses, state, parent, …; the start is the 22nd.
    """
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    head, _, rest = stat.rpartition(")")
    fields = rest.split()
    return Process(pid, head.partition("(")[2], fields[0], int(fields[1]), int(fields[19]))


def state_of(pid: int) -> str:
    """Process.state of the process that has this pid now, "X" (dead) if none has."""
    try:
        return process_of(pid).state
    except OSError:
        return "X"
