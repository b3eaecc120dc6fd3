# SPDX-License-Identifier: Apache-2.0
"""Run a function in the place of the pool: after isolate(), in a process of its own."""

import ctypes
import json
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from tests.waiting import HANG
from tests.worker.pool_process import job_content, key_pipe
from vfsd.transport.fd_channel import FdChannel
from vfsd.transport.job import Job, JobFds, decode
from vfsd.transport.shared_memory import create_segment
from vfsd.worker.isolation import isolate
from vfsd.worker.sandbox import IsolationError, Sandbox

LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SECCOMP: Final = ctypes.CDLL("libseccomp.so.2")
PR_SET_DUMPABLE: Final = 4
PR_SET_CHILD_SUBREAPER: Final = 36

Probe = Callable[[Sandbox], Any]


def syscall(name: str, *arguments: object) -> int:
    """Make a system call by its name; raise OSError if the call fails."""
    number = _SECCOMP.seccomp_syscall_resolve_name(name.encode())
    words = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    result: int = LIBC.syscall(number, *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def is_system_call(name: str) -> bool:
    return int(_SECCOMP.seccomp_syscall_resolve_name(name.encode())) >= 0


def become(uid: int) -> None:
    """Make this process one of an ordinary user, as if that user had started it."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as an exec by that user does


class Killed(Exception):  # noqa: N818 - a result, not an error
    """This signal has ended the sandboxed process."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


class Raised(Exception):  # noqa: N818
    """The probe raised an exception; the text is "Type: message"."""


def run(
    folder: Path,
    probe: Probe,
    uid: int | None = None,
    prepare: Callable[[], None] = lambda: None,
    **job: Any,
) -> Any:
    """Run `probe` in the sandbox of a job that shares `folder`; returns its result, sent as JSON.

    `uid`: the ordinary user that starts the sandbox (None: root). Without a `uid`, `prepare` is
    called before isolate(). Raises Killed or Raised if the probe does not return, and
    IsolationError if a stage of the isolation fails.
    """
    ours, theirs = FdChannel.pair()
    ours.socket.settimeout(HANG)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    first = os.fork()
    if first == 0:
        if uid is not None:
            prepare = partial(become, uid)
        _child(lambda: _job(folder, theirs, job), theirs, prepare, probe)
    theirs.close()
    os.waitpid(first, 0)
    try:
        return _outcome(ours)
    finally:
        ours.close()
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _outcome(channel: FdChannel) -> Any:
    begun = channel.receive()
    assert begun is not None
    if "failed" in begun.content:
        raise IsolationError(begun.content["failed"])
    assert begun.pid is not None
    result = channel.receive()
    _, status = os.waitpid(begun.pid, 0)
    if os.WIFSIGNALED(status):
        raise Killed(os.WTERMSIG(status))
    assert result is not None
    if "raised" in result.content:
        raise Raised(result.content["raised"])
    return result.content["result"]


def _child(
    job: Callable[[], Job], channel: FdChannel, prepare: Callable[[], None], probe: Probe
) -> NoReturn:
    try:
        prepare()
        os.dup2(os.pipe2(os.O_NONBLOCK)[1], 2)  # a pipe without a reader: output is lost
        try:
            sandbox = isolate(job())
        except IsolationError as error:
            channel.send({"failed": str(error)})
        else:
            channel.send({"begun": True})
            channel.send(_result(probe, sandbox))
    except BaseException as error:
        channel.send({"failed": "".join(traceback.format_exception(error))})
    finally:
        os._exit(0)


def _result(probe: Probe, sandbox: Sandbox) -> dict[str, Any]:
    try:
        return {"result": probe(sandbox)}
    except Exception as error:
        return {"raised": f"{type(error).__name__}: {error}"}


def _job(folder: Path, channel: FdChannel, changes: dict[str, Any]) -> Job:
    """A job whose segments are empty, because no process of these tests maps them."""
    names = ("device", "inodes", "files", "rings", "workers")
    fds: dict[str, Any] = {name: create_segment(name, 1) for name in names}
    fds |= {"root": os.open(folder, os.O_PATH), "channel": channel.fileno()}
    fds |= {"listeners": (create_segment("listener", 1),), "stderr": 2, "key": key_pipe()}
    content = job_content(shared_dir=str(folder), slots=1) | changes
    return replace(decode(json.dumps(content).encode()), fds=JobFds(**fds))
