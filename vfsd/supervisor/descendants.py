# SPDX-License-Identifier: Apache-2.0
"""Finds the descendants of a process in /proc, in order to kill them.

psutil is not used, because it takes 1 MiB in keeper and supervisor. Nor can psutil be imported at
the end of a long life, when it is needed: by then it may have been upgraded to a version that does
not fit any more.
"""

import errno
import os
import re
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vfsd.transport.control_messages import printable

_STAT_BYTES: Final = 4096  # more than any /proc/PID/stat has


def _kill(pidfd: int) -> None:
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)


@dataclass(frozen=True)
class Process:
    """A process as it was found. If another process has the pid by now, `started` differs."""

    pid: int
    name: str
    state: str  # proc(5): "D" waits for a device or file system and takes no signal, "Z" has ended
    parent: int
    session: int
    started: int  # clock ticks after boot
    cpu: int  # clock ticks of CPU time

    def kill(self, send: Callable[[int], None] = _kill) -> None:
        """Kill this process: call `send` with its pidfd. No effect if the process is gone."""
        with suppress(OSError):
            pidfd = os.pidfd_open(self.pid)
            try:
                if process_of(self.pid).started == self.started:
                    send(pidfd)
            finally:
                os.close(pidfd)

    def has_ended(self) -> bool:
        """Has each thread ended? The state is that of the first thread, and others may still wait
        for a file system. What has ended stays a zombie until its parent reaps it."""
        if self.state not in "ZX":
            return False
        with suppress(OSError):
            pidfd = os.pidfd_open(self.pid)
            try:
                return has_ended(pidfd)
            finally:
                os.close(pidfd)
        return True

    def __str__(self) -> str:
        return f"{self.pid} ({printable(self.name)}, state {self.state})"


def descendants(pid: int) -> list[Process]:
    """All descendants of a process; empty if the process is gone."""
    return _below({pid}, _everything())


def of_session(session: int) -> list[Process]:
    """All processes of a session, setsid(2), and those of their descendants that have left it."""
    everything = _everything()
    inside = [process for process in everything if process.session == session]
    return inside + _below({process.pid for process in inside}, everything)


def _below(pids: Collection[int], everything: Iterable[Process]) -> list[Process]:
    """The descendants of these processes, without these processes."""
    found = set(pids)
    below: list[Process] = []
    while new := [p for p in everything if p.parent in found and p.pid not in found]:
        found |= {process.pid for process in new}
        below += new
    return below


def _everything() -> list[Process]:
    processes = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib takes four times as long
        if name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                processes.append(process_of(int(name)))
    return processes


def await_end(processes: Iterable[Process], seconds: float) -> None:
    """Wait until all of these have ended, for at most `seconds`."""
    poll = select.poll()
    waiting = set()
    deadline = time.monotonic() + seconds
    for process in processes:
        with suppress(OSError):  # the process is gone
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


def has_ended(pidfd: int, seconds: float = 0.0) -> bool:
    """Has this process ended, or does it end within `seconds`?"""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def process_of(pid: int) -> Process:
    """The process that has this pid now; FileNotFoundError or ProcessLookupError if there is none.

    The fields are those of proc(5): pid, name in parentheses, state, parent, group, session; the
    14th and the 15th are the CPU time in user space and in the kernel, the 22nd is the time of the
    start.
    """
    stat = _read(f"/proc/{pid}/stat")
    head, _, rest = stat.rpartition(")")
    fields = rest.split()
    return Process(
        pid=pid,
        name=head.partition("(")[2],
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        cpu=int(fields[11]) + int(fields[12]),
    )


def _read(path: str) -> str:
    """The text of a short file below /proc. pathlib would take four times as long, and a VMM that
    connects again waits while all processes of the host are read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _STAT_BYTES).decode(errors="replace")
    finally:
        os.close(fd)


def pid_of(pidfd: int) -> int:
    """The pid of the process of a pidfd; OSError (EINVAL) if the process is gone or the fd is not a
    pidfd."""
    info = Path(f"/proc/self/fdinfo/{pidfd}").read_text(errors="replace")
    found = re.search(r"^Pid:\t(\d+)$", info, re.MULTILINE)
    if not found:
        raise OSError(errno.EINVAL, "the fd is not the pidfd of a process")
    return int(found[1])


def state_of(pid: int) -> str:
    """The state of the process that has this pid now, "X" (dead) if there is none."""
    try:
        return process_of(pid).state
    except OSError:
        return "X"


def pid_inside(pid: int) -> int | None:
    """The pid of a process in its innermost pid namespace; None if the process is gone."""
    with suppress(OSError, LookupError, ValueError):
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        return int(status.partition("\nNSpid:")[2].splitlines()[0].split()[-1])
    return None
