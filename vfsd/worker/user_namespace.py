# SPDX-License-Identifier: Apache-2.0
"""Which users exist in the sandbox: the maps of its user namespace.

Without --uid-map, a daemon that is not root has only its own uid, as 0, and a daemon that is root
has all users with their own uids. A process can map its own uid by itself, and no others. All other
maps have to be written from outside of the namespace: by root directly, by other users through
newuidmap and newgidmap (package uidmap), which are set-user-ID programs and check /etc/subuid. So a
child process is forked before the namespace is made, while this process is not confined yet and has
read no byte from a guest. The child writes the map and ends before the next namespace is made. The
sandbox keeps nothing of the child.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from vfsd.transport.job import Job
from vfsd.transport.native import check, lib
from vfsd.transport.option_types import IdRange

PROGRAMS: Final = {"uid": "newuidmap", "gid": "newgidmap"}  # found in /bin and /usr/bin
MESSAGE_MAX: Final = 500

Step = tuple[str, Callable[[], None]]


class HelperError(OSError):
    """A helper program could not write the map; `strerror` is its reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


class Mapper(AbstractContextManager["Mapper"]):
    """Maps the ids. Create it before the user namespace; run steps() inside the namespace."""

    def __init__(self, job: Job) -> None:
        self._own = {"uid": os.geteuid(), "gid": os.getegid()}
        self._maps = {kind: self._map(kind, job) for kind in PROGRAMS}
        self._helpers = {
            kind: _Helper(self._action(kind)) for kind in PROGRAMS if not self._is_own_alone(kind)
        }

    def __exit__(self, *_: object) -> None:
        for helper in self._helpers.values():
            helper.close()

    def steps(self) -> Iterator[Step]:
        """The steps to run in the new namespace, in this order, with their names."""
        if "gid" not in self._helpers:  # required before a process maps its own gid itself
            yield "forbid setgroups", partial(_write, "/proc/self/setgroups", "deny")
        for kind in ("gid", "uid"):
            how = "" if self._own["uid"] == 0 else f" ({PROGRAMS[kind]})"
            yield f"map {kind}s{how}", partial(self._map_ids, kind)
        if "gid" in self._helpers:
            yield "give up the supplementary groups", partial(os.setgroups, [])
        yield "become root of the user namespace", become_root

    def _map(self, kind: str, job: Job) -> tuple[IdRange, ...]:
        given = job.uid_map if kind == "uid" else job.gid_map
        if given:
            return given
        return _all_ids(kind) if self._own["uid"] == 0 else (IdRange(0, self._own[kind], 1),)

    def _action(self, kind: str) -> Callable[[], None]:
        """The action that maps ids from outside of the namespace."""
        pid, numbers = os.getpid(), _numbers(self._maps[kind])
        if self._own["uid"] == 0:
            return partial(_write_map, f"/proc/{pid}/{kind}_map", self._maps[kind])
        return partial(_execute, [PROGRAMS[kind], str(pid), *numbers])

    def _is_own_alone(self, kind: str) -> bool:
        return self._maps[kind] == (IdRange(0, self._own[kind], 1),)

    def _map_ids(self, kind: str) -> None:
        if kind in self._helpers:
            self._helpers[kind].run()
        else:
            _write_map(f"/proc/self/{kind}_map", self._maps[kind])


class _Helper:
    """A child process that stays outside of the new namespace and does `action` when run() is
    called."""

    def __init__(self, action: Callable[[], None]) -> None:
        go, self._go = os.pipe2(os.O_CLOEXEC)
        self._answer, answer = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._go)  # the child sees EOF when the parent closes its end
            _help(action, go, answer)
        os.close(go)
        os.close(answer)

    def run(self) -> None:
        """Have the child do the action; HelperError with the child's message if the action
        fails."""
        os.write(self._go, b"\0")
        said = os.read(self._answer, MESSAGE_MAX)
        while more := os.read(self._answer, MESSAGE_MAX):
            said = (said + more)[:MESSAGE_MAX]
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if status:
            raise HelperError(" ".join(said.decode(errors="replace").split()) or "it failed")

    def close(self) -> None:
        os.close(self._go)
        os.close(self._answer)
        if self._pid:
            os.waitpid(self._pid, 0)


def _help(action: Callable[[], None], go: int, answer: int) -> None:
    """Run as the child: wait, then do the action, with `answer` as stderr."""
    status = 1
    try:
        if os.read(go, 1):
            os.dup2(answer, 2)
            action()
            status = 0
    except OSError as error:
        os.write(answer, (error.strerror or str(error)).encode())
    finally:
        os._exit(status)


def _execute(command: list[str]) -> None:
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is what we want
    except OSError as error:
        raise HelperError(f"{command[0]}: {error.strerror}; install the package uidmap") from None


def _all_ids(kind: str) -> tuple[IdRange, ...]:
    """Every id of our present user namespace, mapped to the same id."""
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        rows = [list(map(int, line.split())) for line in file]
    return tuple(IdRange(inside, inside, count) for inside, _, count in rows)


def _write_map(path: str, ranges: tuple[IdRange, ...]) -> None:
    """Write all ranges at once: the kernel accepts only one write(2)."""
    _write(path, "".join(f"{r.inside} {r.outside} {r.length}\n" for r in ranges))


def _numbers(ranges: tuple[IdRange, ...]) -> list[str]:
    return [str(number) for r in ranges for number in (r.inside, r.outside, r.length)]


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def become_root() -> None:
    """Take the ids that workers have between two requests: root, whatever our own ids are mapped
    to. The saved user id stays the supervisor's (isolation.py)."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, -1)
    check(lib.isolate_keep_dumpable())
