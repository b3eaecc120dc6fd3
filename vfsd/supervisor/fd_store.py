# SPDX-License-Identifier: Apache-2.0
"""Keeps the fds of a running VM outside of the daemon, so that all its processes may die at once.

THEORY

Purpose. No VMM connects again. So the connection of the VMM, its memory and eventfds, and the
tables of the share must outlive the daemon when the service is restarted or its control group is
killed. systemd keeps them: its fd store holds each fd that a service sends (FDSTORE=1,
sd_notify(3)), and gives all of them to the next start of the service. The saved state (resume.py),
which is a memfd and in the store as well, says what each fd is for.

Elsewhere a process of our own keeps the fds, by the same protocol (state_holder.py).

Labels. An fd is stored under a label, and the saved state maps each fd number to a label. A label
is used once: labels are counted in the segment of the state, and a label is noted there before it
is used, as the generation of a device is. systemd stores an open file once only, even under two
labels, and a VMM sends the same memory again and again; so all fds of one open file have one label
(kcmp(2)).

Order. Before a state is saved, the store has every fd that the state names: hold(). Then the
labels that no fd of the state has are removed: release(). Only after that a message is taken off
its socket, and fds are closed. So a daemon that dies at any point leaves either the state before
the message and the message on the socket, or the state after the message. A supervisor that dies
before release() leaves labels in the store that no state needs: resume() removes them.

Time. A sender does not learn when systemd has read a message, and systemd drops a message if the
process that sent it is gone by then. So hold() waits for systemd (BARRIER=1), but not for long,
because the VMM waits for us. The message is lost only if the service is killed after that time, and
before systemd has read the message.

The sender. systemd looks at the process that sends: with NotifyAccess=all, any process of the
service may send. Workers cannot reach the socket.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from vfsd.supervisor.systemd import ServiceManager
from vfsd.transport.native import lib

SYSTEMD: Final = "systemd"  # the value of --keep-state; any other value is a folder
PREFIX: Final = "vfsd-"
FDS_MAX: Final = 2048  # in a store, as in the unit
FIRST_PASSED: Final = 3  # the number of the first fd that systemd passes
BARRIER_SECONDS: Final = 0.5
RECENT: Final = 1024  # labels: more than are given between two saved states


class FdStore:
    """The fds of a supervisor that systemd keeps. `labels`: fd -> label."""

    def __init__(self, manager: ServiceManager, next_label: Callable[[], int]) -> None:
        self.labels: dict[int, int] = {}
        self.is_idle = False  # what is in the store belongs to a daemon that still serves
        self._manager = manager
        self._next_label = next_label

    def hold(self, fds: Iterable[int]) -> None:
        """Store each of `fds` that is not stored yet."""
        if self.is_idle:
            return
        new = sorted(set(fds) - self.labels.keys())
        for fd in new:
            self.labels[fd] = self._known_label(fd) or self._store(fd)
        if new:
            self._manager.await_messages(BARRIER_SECONDS)

    def release(self, fds: Iterable[int]) -> None:
        """Remove what is stored, except for `fds`."""
        if self.is_idle:
            return
        kept = {fd: self.labels[fd] for fd in fds}
        for label in sorted(set(self.labels.values()) - set(kept.values())):
            self._manager.remove_fd(name_of(label))
        self.labels = kept

    def take_over(self, theirs: Iterable[str], ours: Mapping[str, int]) -> None:
        """The other daemon has ended its service: remove what it has stored by these names, and
        store `ours`. It may remove names of its own later; no label of ours is one of them."""
        self.is_idle = False
        for name in theirs:
            self._manager.remove_fd(name)
        for name, fd in ours.items():
            self._manager.store_fd(name, fd)

    def resume(self, labels: Mapping[int, int], fds: Iterable[int]) -> None:
        """Go on where another supervisor died; the last state that it saved has these labels, and
        it names `fds`."""
        self.labels = dict(labels)
        end = self._next_label()
        for label in range(max([0, end - RECENT, *labels.values()]) + 1, end):
            self._manager.remove_fd(name_of(label))
        self.release(fds)

    def _store(self, fd: int) -> int:
        label = self._next_label()
        self._manager.store_fd(name_of(label), fd)
        return label

    def _known_label(self, fd: int) -> int | None:
        """The label of an fd of the same open file."""
        for other, label in self.labels.items():
            if lib.process_is_same_file(fd, other):
                return label
        return None


def name_of(label: int | str) -> str:
    """The name of an fd in systemd's store."""
    return f"{PREFIX}{label}"


def returned_fds() -> Sequence[tuple[str, int]]:
    """Those with our names among the fds that this process was started with."""
    fds = [(name, fd) for name, fd in _passed_fds() if name.startswith(PREFIX)]
    for _, fd in fds:
        os.set_inheritable(fd, False)
    return fds


def note_of_other_names(used: int | None) -> str | None:
    """A warning, if this process was started with fds that are not ours: systemd keeps what is in
    its store, and we remove only what we have stored. `used`: an fd that an option names."""
    others = sorted({n for n, fd in _passed_fds() if not n.startswith(PREFIX) and fd != used})
    if not others:
        return None
    return f"systemd has passed fds that are not used, and are left in its fd store: {others}"


def _passed_fds() -> Sequence[tuple[str, int]]:
    """See sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return ()
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    numbers = range(FIRST_PASSED, FIRST_PASSED + len(names))
    return [pair for pair in zip(names, numbers, strict=True) if pair[0]]
