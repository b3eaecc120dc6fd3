# SPDX-License-Identifier: Apache-2.0
"""Running a function in a child process or as another user, and its outcome."""

import ctypes
import errno
import os
import pickle
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from .syscalls import CAP_FSETID, raise_capability

_libc: Final = ctypes.CDLL(None)
CHILD_SECONDS: Final = 200.0  # a child that takes longer hangs, also on a loaded machine
PR_SET_PDEATHSIG: Final = 1
_hold_fsetid: Final[list[bool]] = []


class ChildFailedError(AssertionError):
    """The function in a child raised an exception other than OSError, or the child died."""


@dataclass(frozen=True)
class User:
    """The ids of a process."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT: Final = User(0, 0)
OWNER: Final = User(1000, 1000)
MEMBER: Final = User(1001, 1000)  # of the owner's group
EXTRA: Final = User(
    1002, 1002, (1000, 2000)
)  # of the owner's group, which is a supplementary group
OTHER: Final = User(1003, 1003)


def attempt(call: Callable[..., object], *args: Any, **options: Any) -> str:
    """The outcome of the call: "ok", or the name of its errno."""
    try:
        call(*args, **options)
    except OSError as error:
        return error_name(error)
    return "ok"


def result(call: Callable[..., object], *args: Any, **options: Any) -> object:
    """The value that the call returned, or the name of its errno."""
    try:
        return call(*args, **options)
    except OSError as error:
        return error_name(error)


def error_name(error: OSError) -> str:
    return errno.errorcode[error.errno or 0]


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Run as `user` until the end of the context; the saved ids stay those of root."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, 0)
    os.setresuid(user.uid, user.uid, 0)
    if _hold_fsetid:
        raise_capability(CAP_FSETID)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups([])


@contextmanager
def holding_fsetid() -> Iterator[None]:
    """In this context acting_as() keeps CAP_FSETID, as if the process had started with it."""
    _hold_fsetid.append(True)
    try:
        yield
    finally:
        _hold_fsetid.pop()


def as_user(user: User, call: Callable[..., object], *args: Any, **options: Any) -> str:
    """The outcome of a call that a user makes: see attempt()."""
    with acting_as(user):
        return attempt(call, *args, **options)


def in_child(call: Callable[[], object], seconds: float = CHILD_SECONDS) -> Any:
    """Run `call` in a child process; returns its result, or raises the OSError that it raised."""
    return Child(call).result(seconds)


class Child:
    """A function that runs in a child process."""

    def __init__(self, call: Callable[[], object]) -> None:
        sys.stdout.flush()
        self._pipe, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._pipe)
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            _run(call, writer)
        os.close(writer)

    def result(self, seconds: float = CHILD_SECONDS) -> Any:
        """Wait until the child has ended; returns the result of its function."""
        try:
            data = self._read(seconds)
        finally:
            self._close()
            os.waitpid(self.pid, 0)
        kind, value = pickle.loads(data) if data else ("died", "without a word")  # noqa: S301
        if kind == "returned":
            return value
        if kind == "failed":
            raise OSError(*value)
        raise ChildFailedError(value)

    def end(self) -> None:
        """Kill the child if result() was not called."""
        if self._pipe >= 0:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._close()

    def _close(self) -> None:
        os.close(self._pipe)
        self._pipe = -1

    def _read(self, seconds: float) -> bytes:
        data = b""
        while select.select([self._pipe], [], [], seconds)[0]:
            piece = os.read(self._pipe, 1 << 20)
            if not piece:
                return data
            data += piece
        os.kill(self.pid, signal.SIGKILL)
        raise ChildFailedError(f"the child has not ended within {seconds} s")


def _run(call: Callable[[], object], writer: int) -> None:
    try:
        outcome: tuple[str, object] = ("returned", call())
    except OSError as error:
        outcome = ("failed", (error.errno, error.strerror, f"{traceback.format_exc()}"))
    except BaseException:
        outcome = ("raised", traceback.format_exc())
    try:
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
    finally:
        os._exit(0)


def all_results(calls: Sequence[Callable[[], object]], seconds: float = CHILD_SECONDS) -> list[Any]:
    """Run the calls at the same time, each in its own child; returns their results."""
    children = [Child(call) for call in calls]
    with ExitStack() as stack:  # on a failure, end the others
        for child in children:
            stack.callback(child.end)
        return [child.result(seconds) for child in children]
