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


def _filters(pid: int) -> int:
    """The number of filters of system calls that a process has."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("Seccomp_filters:")[2].split()[0])


def _brokers(found: list[Titled]) -> list[int]:
    """Guard, broker and deputy have one title; only the broker has a filter of its own besides that
    of the guard."""
    guards = max(map(_filters, _outer(found)), default=0)
    return [pid for pid in _inner(found) if _filters(pid) > guards]


def _deputies(found: list[Titled]) -> list[int]:
    brokers = set(_brokers(found))
    return [pid for pid in _inner(found) if pid not in brokers]


@dataclass(frozen=True)
class Role:
    """What a process is for. `title`: the first word of its title. `per_second`: the deaths of this
    role in a second, at most; a process that is killed more often is created again after a pause.
    `partner`: of these two roles one process must live until it has created the other one again.
    """

    name: str
    title: str
    per_second: float
    partner: str | None = None
    choose: Callable[[list[Titled]], list[int]] = _outer

    def pids(self, name: str) -> list[int]:
        return self.choose([p for p in processes(name) if p.title.split()[0] == self.title])


ROLES: Final = {
    role.name: role
    for role in (
        Role("worker", "worker", 50.0),
        Role("supervisor", "supervisor", 1.0, "keeper"),
        Role("keeper", "keeper", 0.2, "supervisor"),
        Role("pool", "pool", 2.0),
        Role("holder", "holder", 0.2),
        Role("broker", "handles", 1.0, None, _brokers),
        Role("guard", "handles", 0.5, "deputy"),
        Role("deputy", "handles", 0.5, "guard", _deputies),
        Role("launcher", "launcher", 0.2, "launcher-deputy"),
        Role("launcher-deputy", "deputy", 0.2, "launcher"),
        Role("template", "template", 0.2),
    )
}
# Of these processes the guest notices no death.
UNNOTICED: Final = (
    *("worker", "supervisor", "keeper", "pool", "broker", "guard", "deputy"),
    *("launcher", "launcher-deputy", "template"),
)
# These processes are created again.
SURVIVED: Final = (*UNNOTICED, "holder")
