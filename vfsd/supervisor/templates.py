# SPDX-License-Identifier: Apache-2.0
"""In the launcher: the template from which pools are forked (vfsd/worker/template.py), and the
next template when this one is to be replaced or has died.

A template that dies before it has made a pool is not replaced at once, since its successor might
die as soon: the next request for a pool executes another template.
"""

import errno
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from vfsd.supervisor.descendants import pid_of
from vfsd.supervisor.pool_fds import check_fds
from vfsd.supervisor.spawn import spawn
from vfsd.transport.job import FORKED
from vfsd.transport.passed_fds import ROOM, close_fds, decode_fds, encode_fds

_STDERR: Final = 2


@dataclass(frozen=True)
class Template:
    """A template: its pidfd, and our end of its socket."""

    pidfd: int
    socket: socket.socket

    @classmethod
    def execute(
        cls, command: list[str], loader: int | None, fds: Sequence[int], title: str
    ) -> "Template":
        """Execute a template; OSError if that is not possible. `fds`: its job and the shared
        directory. `title`: the longest title of a process that is forked from the template. A title
        overwrites the arguments. Behind the arguments of the loader, which stay, the kernel shows
        no title that is longer than the arguments were; so the last argument makes room."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            passed = [theirs.fileno(), *fds]
            argv = [*command, *map(str, passed), " " * len(title.encode())]
            return cls(spawn(argv, loader, passed, _STDERR), ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def end(self) -> None:
        """End the process. The processes that it has forked are not affected."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.close(self.pidfd)
        self.socket.close()


class Templates:
    """The present template of a launcher that serves requests from `requests`. `note` is called
    with the pid of each template, 0 if there is none."""

    def __init__(
        self,
        requests: socket.socket,
        workers: int,
        execute: Callable[[], Template],
        note: Callable[[int], None],
    ) -> None:
        self._requests = requests
        self._workers = workers
        self._execute = execute
        self._note = note
        self._template: Template | None = None
        self._has_worked = False  # the template has made a pool

    def start_pool(self, fds: Sequence[int]) -> list[int]:
        """Have the first process of a pool forked; returns its pidfd. OSError if `fds` are not the
        fds of a pool, or if there is no process."""
        check_fds(fds, self._workers)
        template = self._template or self._begin()
        try:
            template.socket.sendmsg([b"\0"], encode_fds(fds))
            self._await_answer(template)
            flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            data, ancillary, _, _ = template.socket.recvmsg(FORKED.size, ROOM, flags)
        except (ConnectionError, BlockingIOError):
            data, ancillary = b"", []
        pidfds = decode_fds(ancillary)
        if not data:
            self._drop()
            raise OSError(errno.ECHILD, "the template of pools has died")
        (error,) = FORKED.unpack(data)
        if error:
            close_fds(pidfds)
            raise OSError(error, os.strerror(error))
        self._has_worked = True
        return pidfds

    def renew(self, fds: Sequence[int] = ()) -> list[int]:
        """Make the next pool from another template. OSError if it cannot be executed: the next
        request for a pool will try again."""
        if fds:
            raise OSError(errno.EINVAL, "RENEW has no fds")
        self._drop()
        self._begin()
        return []

    def fds(self) -> list[int]:
        """An fd that is readable when the template has died; none if there is no template."""
        return [self._template.pidfd] if self._template else []

    def tend(self, ready: set[int]) -> None:
        """Replace a template that has died, as `ready`, the fds that are readable, shows."""
        if self._template and self._template.pidfd in ready:
            self._replace()

    def leave(self) -> None:
        """In a deputy: give up the fds of the launcher's template."""
        template, self._template = self._template, None
        self._has_worked = False
        if template:
            os.close(template.pidfd)
            template.socket.close()

    def end(self) -> None:
        self._drop()

    def is_template(self, pid: int) -> bool:
        """Is this the pid of the template?"""
        with suppress(OSError):
            return self._template is not None and pid_of(self._template.pidfd) == pid
        return False

    def _replace(self) -> None:
        has_worked = self._has_worked
        self._drop()
        if has_worked:
            with suppress(OSError):  # the next request for a pool will try again
                self._begin()

    def _begin(self) -> Template:
        self._template = template = self._execute()
        with suppress(OSError):  # the template has ended
            self._note(pid_of(template.pidfd))
        return template

    def _drop(self) -> None:
        template, self._template = self._template, None
        self._has_worked = False
        self._note(0)
        if template:
            template.end()

    def _await_answer(self, template: Template) -> None:
        """Wait until the template has answered or died. It may still be importing, which takes any
        time on a slow host. OSError if the share has ended: no process waits for the
        answer then."""
        poll = select.poll()
        poll.register(template.socket, select.POLLIN)
        poll.register(template.pidfd, select.POLLIN)
        poll.register(self._requests, 0)  # only for POLLHUP
        if {fd for fd, _ in poll.poll()} == {self._requests.fileno()}:
            raise OSError(errno.ECANCELED, "the share has ended")
