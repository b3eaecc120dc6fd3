# SPDX-License-Identifier: Apache-2.0
"""The process that outlives its daemon: the launched process, after another daemon has taken over.

A program may wait for the launched process: a shell, a tool that has started the share for its VM.
So after an upgrade (upgrade.py) this process stays, and holds nothing but its
standard fds. It passes signals on, and ends when the last of its children has ended, with the exit
status of that one. It is a child subreaper, so the keeper of each later version becomes its child
when the version before has ended.
"""

import os
import signal
from contextlib import suppress
from typing import Final

from vfsd.supervisor.descendants import descendants
from vfsd.supervisor.resume import sweep
from vfsd.transport.ending_signals import ENDING
from vfsd.transport.process_title import setproctitle

AWAITED: Final = (*ENDING, signal.SIGCHLD)
NOTHING_LEFT: Final = -1


def outlive(name: str) -> int:
    """Wait for the end of all children, with the signals AWAITED blocked; returns an exit
    status."""
    sweep({0, 1, 2})
    setproctitle(f"vfsd: {name} first version")
    last = asked = 0
    while (status := _reap()) != NOTHING_LEFT:
        if status is not None:
            last = status
            continue
        if asked:  # also a keeper that has become our child since then
            _pass_on(asked)
        info = signal.sigwaitinfo(AWAITED)
        if info.si_signo in ENDING:
            asked = info.si_signo
    return last


def _reap() -> int | None:
    """Reap a child; returns its exit status, NOTHING_LEFT, or None if no child has ended. A process
    of a sandbox may have been killed, which says nothing."""
    while True:
        try:
            pid, how = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return NOTHING_LEFT
        if not pid or os.WIFEXITED(how):
            return os.WEXITSTATUS(how) if pid else None


def pass_on_pending() -> int:
    """In a keeper that does not stay: pass on a signal that has come during the upgrade. Return: an
    exit status."""
    while (info := signal.sigtimedwait(ENDING, 0)) is not None:
        _pass_on(info.si_signo)
    return 0


def _pass_on(number: int) -> None:
    for process in descendants(os.getpid()):
        if process.parent == os.getpid():
            with suppress(OSError):
                os.kill(process.pid, number)
