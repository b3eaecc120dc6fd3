# SPDX-License-Identifier: Apache-2.0
"""The launcher's part in an upgrade: it starts the daemon that is to take our place (upgrade.py).

That daemon is started like ours: with the same command line, environment and privileges, and the
program that is installed now. It inherits what our daemon holds and must not let go for a moment:
the shared directory, and the locked pid file and folder. The variable HERITAGE says which fds
these are. The supervisor gives nothing but its socket to that daemon.

Until the other daemon serves, the socket file and the pid file are ours to remove; then they are
the other's. START_HEIR: the fd of a socket pair; the answer is a pidfd of the process. HAND_OVER:
no fds; the other daemon serves, so its processes, which are below this launcher, are not killed.
"""

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vfsd.supervisor.pool_fds import is_channel
from vfsd.supervisor.spawn import spawn_heir

KEY_BYTES: Final = 16  # struct siphash_key
HERITAGE: Final = "VFSD_HERITAGE"  # in the environment: numbers


@dataclass
class Succession:
    """`owns_files`: the socket file and the pid file are ours to remove. `locks`: the fds of the
    pid file and of the folder of --keep-state, in the order of Heritage. `key`: by which the
    brokers of file handles sign (handle_guard.c)."""

    root: int
    user: int
    locks: Sequence[int]
    key: bytes
    owns_files: bool
    is_handed_over: bool = False

    def start_heir(self, fds: Sequence[int]) -> list[int]:
        if len(fds) != 1 or not is_channel(fds[0]):
            raise OSError(errno.EINVAL, "START_HEIR needs a socket")
        pipe = self.pass_key()
        try:
            heritage = Heritage(fds[0], self.root, pipe, self.user, tuple(self.locks))
            environment = os.environ | {HERITAGE: heritage.encode()}
            command = [sys.executable, *sys.orig_argv[1:]]
            return [spawn_heir(command, environment, heritage.fds())]
        finally:
            os.close(pipe)

    def pass_key(self) -> int:
        """The end of a pipe from which the key can be read once."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.write(writer, self.key)
        os.close(writer)
        return reader

    def hand_over(self, fds: Sequence[int]) -> list[int]:
        if fds:
            raise OSError(errno.EINVAL, "HAND_OVER has no fds")
        self.is_handed_over, self.owns_files = True, False
        return []


@dataclass(frozen=True)
class Heritage:
    """What a daemon inherits from the launcher of the daemon whose place it is to take. `user`: the
    user id of keeper and supervisor, the same in both daemons."""

    socket: int
    root: int
    key: int  # a pipe
    user: int
    locks: tuple[int, ...]

    def encode(self) -> str:
        return " ".join(map(str, (self.socket, self.root, self.key, self.user, *self.locks)))

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Heritage | None":
        """None in a daemon that is started in the usual way."""
        text = environment.get(HERITAGE)
        if text is None:
            return None
        sock, root, key, user, *locks = map(int, text.split())
        found = cls(sock, root, key, user, tuple(locks))
        for fd in found.fds():
            os.set_inheritable(fd, False)
        return found

    def fds(self) -> list[int]:
        return [self.socket, self.root, self.key, *self.locks]
