# SPDX-License-Identifier: Apache-2.0
"""The state that a supervisor saves for its successor: one JSON object in a shared segment.

THEORY

Purpose. No VMM reconnects a virtio-fs device, so the connection must outlive the supervisor. The
keeper shares the supervisor's fd table and therefore still holds every fd when the supervisor is
gone; this segment says what each fd number means. A successor reads the segment, closes the fds
that the segment does not mention, and goes on.

Writing. The segment begins with a SavedRecord: a supervisor that dies during save() leaves the
state before. Behind the record is the progress: the sequence number of a state, and how far the
effects of that state have come. The progress is written in one small call, because composing a
whole state takes so long that the supervisor could die before the state is saved. Behind the
progress are the last generation of the device state (device.py) and the last label of an fd that is
kept outside of the daemon (fd_store.py): next_generation() and next_label() write a number before
it is used. The last byte says whether the VM was taken from an earlier daemon (kept_vm.py).

The steps of a message, so that dying at any point loses nothing:
  1. peek: the message stays on the socket, its fds are duplicates;
  2. the session handles the message; save(state after that, effects to carry out, the message);
  3. consume: the message is taken off the socket; mark(CONSUMED);
  4. the effects are carried out, the reply last; mark(REPLIED); save(state, no effects).
A successor finds the socket and the last state saved:
  dead before 2    the message is on the socket and is handled as if it had just arrived; the sweep
                   closes the duplicates of its fds
  dead in 2 to 3   if the saved message equals the one on the socket, consume it; then as below
  dead in 4        carry out the effects (each is idempotent; Close was done by the sweep)
  REPLIED          nothing is left to do

Exactly one reply. A supervisor that has just woken the front-end with its reply is likely to lose
its CPU to the front-end, and may be killed before it notes that the reply was sent. So a reply is
written to a memfd and sent with sendfile(2), which moves the position of that file in the same
system call. The position belongs to the open file, not to the process: the successor sees how much
of the reply was sent.

What this does not cover. The reply to GET_INFLIGHT_FD carries an fd, which sendfile(2) cannot send:
if the supervisor is killed between sending this reply and mark(REPLIED), the reply is sent twice. A
message that arrived in pieces has left the socket before it is complete. If the pool has installed
an fd and its number was not saved, the fd stays open in the pool. A connection that was accepted
and not yet saved is not lost: the successor recognises it by its address (Listener.accepted).
"""

import fcntl
import os
import socket
import struct
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from vfsd.supervisor.listener import Listener
from vfsd.supervisor.saved_state import SavedMessage, SavedState
from vfsd.transport.native import ffi, lib
from vfsd.transport.saved_record import SavedRecord
from vfsd.transport.shared_memory import create_segment, map_segment, unmap_segment
from vfsd.transport.vhost_user import HEADER

_PROGRESS: Final = struct.Struct("=QQ")  # sequence, stage
_GENERATION: Final = struct.Struct("=I")
CONSUMED: Final = 1
REPLIED: Final = 2
HALF: Final = 1 << 20
OUTBOX_BYTES: Final = 1 << 16
OUTBOX_REPLY: Final = 4096  # bytes: more than any reply has
LAYOUT: Final = [5, lib.VFSD_TABLES_LAYOUT]  # of the state, and of the tables that it names
_PROGRESS_AT: Final = 2 * HALF
_GENERATION_AT: Final = _PROGRESS_AT + _PROGRESS.size
_LABEL: Final = struct.Struct("=Q")
_LABEL_AT: Final = _GENERATION_AT + _GENERATION.size
_TAKEN: Final = struct.Struct("=B")
_TAKEN_AT: Final = _LABEL_AT + _LABEL.size
BYTES: Final = _TAKEN_AT + _TAKEN.size


class StateFile:
    """The segment. `fd` is not owned: the keeper holds it open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._addr = map_segment(fd, BYTES)
        self._record = SavedRecord(ffi.buffer(self._addr, 2 * HALF), HALF)

    def close(self) -> None:
        """Unmap the segment, in a process that has no use for it."""
        unmap_segment(self._addr, BYTES)

    @classmethod
    def create(cls) -> "StateFile":
        return cls(create_segment("vfsd-supervisor-state", BYTES))

    def save(self, state: SavedState) -> None:
        self._record.save([LAYOUT, state.encode()])

    def mark(self, stage: int) -> None:
        """Note how far the effects of the last saved state have come."""
        os.pwrite(self.fd, _PROGRESS.pack(self._record.sequence, stage), _PROGRESS_AT)

    def next_generation(self) -> int:
        """An even generation that no supervisor has used. Generations wrap after 2**31 of them."""
        (last,) = _GENERATION.unpack(os.pread(self.fd, _GENERATION.size, _GENERATION_AT))
        generation = (last + 2) % (1 << 32) or 2
        os.pwrite(self.fd, _GENERATION.pack(generation), _GENERATION_AT)
        return int(generation)

    def next_label(self) -> int:
        """A label that no supervisor has used."""
        label = (self.last_label() + 1) % (1 << 64) or 1
        os.pwrite(self.fd, _LABEL.pack(label), _LABEL_AT)
        return label

    def last_label(self) -> int:
        """The label that next_label() has returned last, or skip_labels() was given."""
        return int(_LABEL.unpack(os.pread(self.fd, _LABEL.size, _LABEL_AT))[0])

    def skip_labels(self, last: int) -> None:
        """Let all later labels be larger than `last`."""
        os.pwrite(self.fd, _LABEL.pack(max(last, self.last_label())), _LABEL_AT)

    def note_taken(self, tries: int) -> None:
        """Note that the VM was taken from an earlier daemon, and how many supervisors have tried to
        serve it; 0: the VM is served."""
        os.pwrite(self.fd, _TAKEN.pack(tries), _TAKEN_AT)

    def tries(self) -> int:
        """What note_taken() has noted last."""
        return int(_TAKEN.unpack(os.pread(self.fd, _TAKEN.size, _TAKEN_AT))[0])

    def load(self) -> tuple[SavedState, int]:
        """The last saved state and its stage; the default state if no saved state can be read."""
        layout, content = self._record.load() or (0, {})
        sequence, stage = _PROGRESS.unpack(os.pread(self.fd, _PROGRESS.size, _PROGRESS_AT))
        if layout != LAYOUT:
            return SavedState(), 0
        return SavedState.decode(content), stage if sequence == self._record.sequence else 0


class Outbox:
    """A file of replies to the front-end, one behind the other; see THEORY.

    The socket refers to the file's pages until the front-end has read them, so a page is used
    again only after OUTBOX_BYTES of later replies.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> "Outbox":
        return cls(create_segment("vfsd-replies", OUTBOX_BYTES))

    def start(self) -> int:
        """The offset in the file for the next reply."""
        if self._position() > OUTBOX_BYTES - OUTBOX_REPLY:
            os.lseek(self.fd, 0, os.SEEK_SET)
        return self._position()

    def send(self, sock: socket.socket, data: bytes, start: int) -> None:
        """Send the part of a reply that has not been sent yet. `start`: the reply's offset in the
        file."""
        os.pwrite(self.fd, data, start)
        while (left := start + len(data) - self._position()) > 0:
            os.sendfile(sock.fileno(), self.fd, None, left)

    def _position(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_CUR)


def consume_again(sock: socket.socket, message: SavedMessage) -> None:
    """Take a message off the socket if it is still there."""
    data = HEADER.pack(message.number, message.flags, len(message.payload)) + message.payload
    try:
        if sock.recv(len(data), socket.MSG_PEEK) == data:
            sock.recv(len(data))
    except OSError:
        pass  # no message there, or the VMM has gone: the next read of the socket will show which


def open_fds() -> set[int]:
    """The numbers in this process's fd table."""
    fds = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    return {fd for fd in fds if is_open(fd)}  # without the fd that iterdir() itself had open


def sweep(keep: set[int]) -> list[int]:
    """Close every fd that is not in `keep`; returns the fds that were closed."""
    orphans = sorted(open_fds() - keep)
    for fd in orphans:
        os.close(fd)
    return orphans


def close_orphans(
    saved: SavedState, kept: AbstractSet[int], listener: Listener
) -> tuple[int | None, int]:
    """Close the fds that a dead supervisor had open and did not save, except for `kept`. Returns
    the fd of a connection that it had accepted and not saved, or None; and how many were closed."""
    keep = {0, 1, 2, *kept, *saved.fds()}
    accepted = listener.accepted(open_fds() - keep) if saved.frontend is None else None
    if accepted is not None:
        keep.add(accepted)
    return accepted, len(sweep(keep))


def is_open(fd: int) -> bool:
    """Asks no file system, because the front-end may serve the file system of the fd."""
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True
