# SPDX-License-Identifier: Apache-2.0
"""Executes the first process of a pool, in the launcher."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import vfsd

# The pool is as isolated as with -I, which is not used because it ignores PYTHONPATH: nothing of
# our environment is passed on, nor is the folder of the script, or the current folder, which Python
# puts first in sys.path.
_PATHS: Final = sys.path if sys.flags.safe_path else sys.path[1:]
POOL_ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONPATH": ":".join([*filter(os.path.isabs, _PATHS), str(Path(vfsd.__file__).parents[1])]),
}
_IGNORED: Final = [signal.SIGPIPE, signal.SIGXFSZ]  # by Python


def spawn(command: list[str], loader: int | None, fds: Iterable[int], stderr: int) -> int:
    """Execute a command with these fds, and with `stderr` as fd 2. The command itself closes any
    other fds that it inherits. Returns a pidfd of the process. `loader`: see loader.py.

    SIGCHLD is not ignored in here, so a process that ends early stays a zombie until its pidfd has
    been opened, and its pid cannot be reused before that.
    """
    return _spawn(lambda: _load(command, loader, list(fds), stderr))


def spawn_heir(command: list[str], environment: Mapping[str, str], fds: Iterable[int]) -> int:
    """Execute a command with these fds, our standard fds, and this environment; returns a
    pidfd."""
    actions = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds]
    return _spawn(
        lambda: os.posix_spawn(
            command[0],
            command,
            environment,
            file_actions=actions,
            setsigmask=[],
            setsigdef=_IGNORED,
        )
    )


def _spawn(execute: Callable[[], int]) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        return os.pidfd_open(execute())
    finally:
        reap_by_itself()


def reap_by_itself() -> None:
    """Let the kernel reap children from now on. Children that have ended already are reaped
    here."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _load(command: list[str], loader: int | None, fds: list[int], stderr: int) -> int:
    """Execute a command by the copy of the loader, if there is a copy and it may be executed."""
    if loader is not None:
        with suppress(PermissionError):  # denied by a security module or by vm.memfd_noexec
            return _execute(f"/proc/self/fd/{loader}", [command[0], *command], fds, stderr)
    return _execute(command[0], command, fds, stderr)


def _execute(path: str, command: list[str], fds: list[int], stderr: int) -> int:
    """Execute a command. The module subprocess would take 0.3 MiB for this one call."""
    return os.posix_spawn(
        path,
        command,
        POOL_ENVIRONMENT,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds),  # dup2 to itself clears close-on-exec
        ],
        setsigdef=_IGNORED,
    )
