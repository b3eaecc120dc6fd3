# SPDX-License-Identifier: Apache-2.0
"""A VM that an earlier daemon of this service has left in systemd's fd store: see fd_store.py.

The state is what an earlier supervisor has saved. That supervisor may have been taken over, and
this process still has its privileges. So this process reads the state and nothing else: it neither
maps nor reads any other fd, and asks no file system. An fd is taken only for what its own kind of
file can be. Whatever is wrong with the state, the daemon starts: without the VM.

What is wrong with the values in the state (the size of a ring, for example) is not looked for here.
A supervisor that fails with them gives the VM up, and so does the next one after a few supervisors
have died of them (supervise.py).
"""

import fcntl
import os
import resource
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vfsd.supervisor.fd_store import FDS_MAX, name_of
from vfsd.supervisor.frontend_fds import check_fds, is_frontend
from vfsd.supervisor.options import Options
from vfsd.supervisor.resume import (
    BYTES,
    CONSUMED,
    OUTBOX_BYTES,
    REPLIED,
    Outbox,
    StateFile,
    is_open,
    open_fds,
)
from vfsd.supervisor.saved_state import SavedState
from vfsd.supervisor.session import Session
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.shared_memory import is_segment
from vfsd.transport.vhost_user import MESSAGES, Message, Number
from vfsd.transport.vhost_user_payloads import MemoryTable, VringFd

STATE: Final = name_of("state")
OUTBOX: Final = name_of("outbox")
NUMBERS: Final = range(3, 1 << 16)  # fds that a supervisor can have; a table of fds has a row each
LABELS: Final = range(1, 1 << 63)


@dataclass(frozen=True)
class KeptVm:
    """The state of a daemon that is gone. Every fd that the state names is open under the number
    that the state has for it, so supervisors go on as if only a supervisor had died."""

    state: StateFile
    outbox: Outbox
    fds: frozenset[int]
    names: frozenset[str]  # the names of all of these in the store


@dataclass(frozen=True)
class Kept:
    """What systemd has kept. `vm`: None if no VM was connected, or if the VM cannot be taken up.
    `stale`: the names of fds in the store that nothing needs any more. `lock`: the fd of the lock
    of a folder; see claim() in state_holder.py."""

    vm: KeptVm | None
    stale: Sequence[str]
    lock: int | None = None

    @classmethod
    def take(cls, returned: Sequence[tuple[str, int]], options: Options) -> "Kept":
        """Take the VM out of the fds that were kept, and close the other fds.

        To be called before this process opens anything: the numbers must be free.
        """
        foreign = open_fds() - {fd for _, fd in returned}
        try:
            vm = _take_vm(_unambiguous(returned), options)
        except Exception:  # any error that Python has: see above
            vm = None
        if not vm:
            close_fds(open_fds() - foreign)
        return cls(vm, sorted({name for name, _ in returned} - (vm.names if vm else frozenset())))


def allow_fds() -> None:
    """Allow this process the fds that the earlier daemon had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _unambiguous(returned: Sequence[tuple[str, int]]) -> dict[str, int]:
    """The fds whose name no other fd has; the other fds are closed. A store has two fds of a name
    if a message to it was lost."""
    counts = Counter(name for name, _ in returned)
    close_fds(fd for name, fd in returned if counts[name] > 1)
    return {name: fd for name, fd in returned if counts[name] == 1}


def _take_vm(fds: dict[str, int], options: Options) -> KeptVm | None:
    """None, or any error, if there is no VM that can be taken up; fds may be open then."""
    if not _is_sized(fds[STATE], BYTES) or not _is_sized(fds[OUTBOX], OUTBOX_BYTES):
        return None
    saved = _go_on(*StateFile(fds[STATE]).load())
    if not _is_complete(saved, options):
        return None
    fds = _move_above(fds, max([*saved.labels, *fds.values()]) + 1)
    state, outbox = StateFile(fds.pop(STATE)), Outbox(fds.pop(OUTBOX))
    placed = _place(fds, saved.labels)
    if not saved.kept_fds() <= placed or not _is_of_its_kind(saved):
        return None
    state.load()  # which continues the sequence of its numbers
    state.save(saved)
    state.note_taken(1)
    names = {STATE, OUTBOX, *map(name_of, saved.labels.values())}
    return KeptVm(state, outbox, frozenset(placed), frozenset(names))


def _is_sized(fd: int, size: int) -> bool:
    return is_segment(fd) and os.fstat(fd).st_size == size


def _is_complete(saved: SavedState, options: Options) -> bool:
    """Is this the state of a daemon with these options that served a VM?"""
    if saved.frontend is None or saved.ended is not None:
        return False
    session, lost = Session.restore(saved.session), saved.lost
    slots = lost.spawned | lost.ended if lost else frozenset()
    return (
        session.queue_count == len(session.vrings) == options.request_queues + 1
        and _are_all_in(range(options.workers), slots)
        and len(saved.labels) <= FDS_MAX
        and _are_all_in(NUMBERS, saved.labels)
        and _are_all_in(LABELS, saved.labels.values())
    )


def _are_all_in(numbers: range, found: Iterable[object]) -> bool:
    """`in` compares what is not an integer with each number of a range."""
    return all(isinstance(value, int) and value in numbers for value in found)


def _is_of_its_kind(saved: SavedState) -> bool:
    """Is each fd what the state says? ProtocolError if the VMM could not have sent it."""
    for message in _messages(Session.restore(saved.session)):
        check_fds(message)
    tables = saved.lost.segments.own_fds() if saved.lost else []
    return (
        saved.frontend is not None and is_frontend(saved.frontend) and all(map(is_segment, tables))
    )


def _messages(session: Session) -> Iterator[Message]:
    """Messages with all fds of the session, as the VMM sends them."""
    regions, memory = [region for region, _ in session.memory.rows], session.memory.fds()
    yield Message(MESSAGES[Number.SET_MEM_TABLE], MemoryTable(tuple(regions)), tuple(memory))
    if session.inflight:
        record, fd = session.inflight
        yield Message(MESSAGES[Number.SET_INFLIGHT_FD], record, (fd,))
    for index, vring in enumerate(session.vrings):
        eventfds = tuple(vring.fds())
        yield Message(MESSAGES[Number.SET_VRING_KICK], VringFd(index, True), eventfds)


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
