# SPDX-License-Identifier: Apache-2.0
"""The processes of a daemon by role, and how often each role may die.

A process is found by its title in all of /proc and not as a descendant of the daemon, because a
process may outlive its parent.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class Titled:
    """A process, with the words of its title behind the name of the daemon."""

    pid: int
    title: str


def processes(name: str) -> list[Titled]:
    """The living processes of the daemon called `name`."""
    start, found = f"vfsd: {name} ".encode(), []
    for entry in os.listdir("/proc"):  # noqa: PTH208 - only names are needed
        if entry.isdigit():
            _, is_ours, title = _command_line(entry).partition(start)
            if is_ours:
                words = title.split(b"\0", maxsplit=1)[0]
                found.append(Titled(int(entry), words.decode(errors="replace")))
    return found


def _command_line(pid: str) -> bytes:
    """The command line of a process; empty if the process has ended. This is called for each
    process of the machine, up to 50 times in a second."""
    try:
        fd = os.open(f"/proc/{pid}/cmdline", os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, 400)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _outer(found: list[Titled]) -> list[int]:
    """The processes whose parents have another title: a process that has just been forked has the
    title of its parent for a moment."""
    pids = {process.pid for process in found}
    return [process.pid for process in found if _parent(process.pid) not in pids]


def _inner(found: list[Titled]) -> list[int]:
    outer = set(_outer(found))
    return [process.pid for process in found if process.pid not in outer]


@dataclass(frozen=True)
class Role:
    """What a process is for. `title`: the first word of its title. `per_second`: the most deaths of
    this role in a second that the daemon promises to survive. `is_survived`: the role dies unless
    --roles chooses others."""

    name: str
    title: str
    per_second: float
    is_survived: bool
    choose: Callable[[list[Titled]], list[int]] = _outer

    def pids(self, name: str) -> list[int]:
        return self.choose([p for p in processes(name) if p.title.split()[0] == self.title])


ROLES: Final = {
    role.name: role
    for role in (
        Role("worker", "worker", 50.0, True),
        # The keeper gives up after five deaths within ten seconds.
        Role("supervisor", "supervisor", 0.3, True),
        Role("pool", "pool", 5.0, False),
        Role("holder", "holder", 1.0, False),
        Role("keeper", "keeper", 1.0, False),
        Role("broker", "handles", 0.1, False, _inner),
        Role("guard", "handles", 0.1, False),
        Role("launcher", "launcher", 1.0, False),
    )
}
SURVIVED: Final = tuple(role.name for role in ROLES.values() if role.is_survived)
