# SPDX-License-Identifier: Apache-2.0
"""A VM that an earlier daemon of this service has left in systemd's fd store: see fd_store.py."""

import fcntl
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from vfsd.supervisor.fd_store import name_of
from vfsd.supervisor.resume import CONSUMED, REPLIED, Outbox, StateFile, is_open, open_fds
from vfsd.supervisor.saved_state import SavedState
from vfsd.transport.passed_fds import close_fds

STATE: Final = name_of("state")
OUTBOX: Final = name_of("outbox")


@dataclass(frozen=True)
class KeptVm:
    """The state of a daemon that is gone. Every fd that the state names is open under the number
    that the state has for it, so supervisors go on as if only a supervisor had died."""

    state: StateFile
    outbox: Outbox
    fds: frozenset[int]


@dataclass(frozen=True)
class Kept:
    """What systemd has kept. `vm`: None if no VM was connected, or if an fd of the VM is missing.
    `names`: the names under which systemd keeps fds. `lock`: the fd of the lock of a folder; see
    claim() in state_holder.py."""

    vm: KeptVm | None
    names: tuple[str, ...]
    lock: int | None = None

    @classmethod
    def take(cls, returned: Mapping[str, int]) -> "Kept":
        """Take the VM out of the fds that were kept, and close the other fds.

        To be called before this process opens anything: the numbers must be free. The state is what
        an earlier supervisor has saved. That supervisor may have been taken over, and this process
        still has its privileges: it looks at no other fd, and a state that cannot be is no state.
        """
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # as the earlier daemon had
        foreign = open_fds() - set(returned.values())
        try:
            vm = _take_vm(dict(returned))
        except (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            vm = None
            close_fds(open_fds() - foreign)
        return cls(vm, tuple(returned))


def _take_vm(fds: dict[str, int]) -> KeptVm | None:
    if STATE not in fds or OUTBOX not in fds:
        close_fds(fds.values())
        return None
    saved = _go_on(*StateFile(fds[STATE]).load())
    fds = _move_above(fds, max([2, *saved.labels, *fds.values()]) + 1)
    state, outbox = StateFile(fds.pop(STATE)), Outbox(fds.pop(OUTBOX))
    placed = _place(fds, saved.labels)
    if saved.frontend is None or saved.ended is not None or not saved.kept_fds() <= placed:
        close_fds({state.fd, outbox.fd, *placed})
        return None
    state.load()  # which continues the sequence of its numbers
    state.save(saved)
    return KeptVm(state, outbox, frozenset(placed))


def _go_on(saved: SavedState, stage: int) -> SavedState:
    """The state without its sandbox, which is gone, and without what has been done already."""
    return replace(
        saved,
        pool=None,
        lost=saved.without_pool(),
        message=saved.message if stage < CONSUMED else None,
        effects=saved.effects if stage < REPLIED else (),
    )


def _move_above(fds: Mapping[str, int], lowest: int) -> dict[str, int]:
    """Move fds to numbers from `lowest` on."""
    moved = {}
    for name, fd in fds.items():
        moved[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
        os.close(fd)
    return moved


def _place(fds: Mapping[str, int], labels: Mapping[int, int]) -> set[int]:
    """Give the fd of each label its numbers; returns the numbers. Closes `fds`."""
    placed = set()
    for number, label in labels.items():
        if (fd := fds.get(name_of(label))) is not None and not is_open(number):
            os.dup2(fd, number, inheritable=False)
            placed.add(number)
    close_fds(fds.values())
    return placed
