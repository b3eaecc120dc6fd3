# SPDX-License-Identifier: Apache-2.0
"""SOCKET.pid beside the socket: the pid of the daemon, as the Rust virtiofsd writes it.

Tools wait for this file (virtme-ng), and end the process whose pid is in the file. The file is
locked (flock(2)) as long as any process of the daemon lives, so that no second daemon, be it vfsd
or the Rust virtiofsd, begins to serve the same path.

Only the launcher has the file open. An attacker who takes over the supervisor therefore cannot
write the pid of another process into the file, which a tool would then end.
"""

import errno
import fcntl
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from vfsd.transport.errors import OperatorError

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class InUseError(Exception):
    """Another daemon holds the lock."""


@dataclass(frozen=True)
class PidFile:
    """The open, locked file."""

    path: str
    fd: int

    @classmethod
    def claim(cls, path: str) -> Self:
        """Create the file, or take over a file that another daemon left behind, and write our pid.

        Raises InUseError, or OperatorError if the file cannot be taken.
        """
        while (claimed := cls._lock(path)) is None:
            pass  # a daemon that was ending has removed the file: create it again
        claimed.write(os.getpid())
        return claimed

    @classmethod
    def _lock(cls, path: str) -> Self | None:
        """The file, locked; None if another daemon removed the file before it was locked."""
        file = cls(path, _open(path))
        try:
            _check(path, file.fd)
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file._is_there():
                return file
        except BlockingIOError:
            os.close(file.fd)
            raise InUseError from None
        except BaseException:
            os.close(file.fd)
            raise
        os.close(file.fd)
        return None

    def write(self, pid: int) -> None:
        """Write the pid of the keeper. A program that reads the file never finds it empty, because
        the text gets its new length last."""
        text = b"%d\n" % pid
        os.pwrite(self.fd, text, 0)
        os.ftruncate(self.fd, len(text))

    def remove(self) -> None:
        """Remove the file, unless another file has taken its place."""
        if self._is_there():
            with suppress(FileNotFoundError):
                os.unlink(self.path)  # noqa: PTH108 - not with pathlib's errors

    def _is_there(self) -> bool:
        """Does the path still lead to this file?"""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self.fd))


def _open(path: str) -> int:
    try:
        return os.open(path, _FLAGS, 0o600)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise OperatorError(f"cannot write '{path}': {reason}") from None


def _check(path: str, fd: int) -> None:
    """Refuse a file of another kind, or with another name, that was put there for us to write
    into."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise OperatorError(
            f"'{path}' is not a regular file with one name, as a pid file is; remove it or choose"
            " another --socket-path"
        )
