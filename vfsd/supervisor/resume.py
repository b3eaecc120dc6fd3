# SPDX-License-Identifier: Apache-2.0
"""What a supervisor leaves to its successor: one JSON object in a shared segment.

THEORY

Purpose. No VMM reconnects a virtio-fs device, so the connection must outlive the supervisor. The
keeper shares the supervisor's fd table and therefore still holds every fd when the supervisor is
gone; what the numbers mean is in this segment. A successor reads it, closes what it does not
mention, and goes on.

Writing. The segment has two halves, each a header (sequence number, length, CRC-32) and a JSON
text. save() writes the half that load() would not read. A writer that dies in between leaves a
half whose checksum is wrong, and load() takes the other one. Behind the halves is one word of
progress, the sequence number of a state and how far its effects have come: it is written in one
small call, where composing a state would leave too much time to die in. Another word is the last
generation of the device state (device.py): next_generation() writes it before it is used.

What a message goes through, so that dying at any point loses nothing:
  1. peek: the message stays on the socket, its fds are duplicates;
  2. the session handles it; save(state after it, the effects still to be carried out, the message);
  3. consume: now it is off the socket; mark(CONSUMED);
  4. the effects are carried out, the reply last; mark(REPLIED); save(state, no effects).
A successor finds the socket and the last state saved:
  dead before 2    the message is on the socket and is handled as if it had just come; the
                   duplicates of its fds are closed by the sweep
  dead in 2 to 3   if the saved message equals what is on the socket, consume it; then as below
  dead in 4        carry out the effects (each is idempotent; Close was done by the sweep)
  REPLIED          nothing is left to do

Exactly one reply. A supervisor that has just woken the front-end with its reply is likely to be off
its CPU, and may be killed before it notes that the reply is out. So a reply is written to a memfd
and sent with sendfile(2), which moves that file's position in the same system call. The position
belongs to the open file, not to the process: the successor sees how much of the reply is out.

What it does not cover. GET_INFLIGHT_FD's reply carries an fd, which sendfile cannot: killed between
sending it and mark(REPLIED), it is sent twice. Between accept() and save() the connection is closed
by the sweep. A message that arrived in pieces has left the socket before it is complete. fds that
the pool has installed but whose numbers were not saved stay open in the pool.
"""

import json
import os
import socket
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vfsd.supervisor.saved_state import SavedMessage, SavedState
from vfsd.transport.shared_memory import create_segment
from vfsd.transport.vhost_user import HEADER

_HEADER: Final = struct.Struct("=QII")  # sequence, length, CRC-32
_PROGRESS: Final = struct.Struct("=QQ")  # sequence, stage
_GENERATION: Final = struct.Struct("=I")
CONSUMED: Final = 1
REPLIED: Final = 2
HALF: Final = 1 << 20
OUTBOX_BYTES: Final = 1 << 16
OUTBOX_REPLY: Final = 4096  # bytes: more than any reply has
LAYOUT: Final = 2
_PROGRESS_AT: Final = 2 * HALF
_GENERATION_AT: Final = _PROGRESS_AT + _PROGRESS.size


class StateFile:
    """The segment; owns nothing but the number of its fd, which the keeper holds open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._sequence = 0

    @classmethod
    def create(cls) -> "StateFile":
        return cls(create_segment("vfsd-supervisor-state", _GENERATION_AT + _GENERATION.size))

    def save(self, state: SavedState) -> None:
        text = json.dumps([LAYOUT, state.encode()], separators=(",", ":")).encode()
        if len(text) > HALF - _HEADER.size:
            raise ValueError(f"a state of {len(text)} bytes")
        self._sequence += 1
        header = _HEADER.pack(self._sequence, len(text), _checksum(self._sequence, text))
        os.pwrite(self.fd, header + text, self._sequence % 2 * HALF)

    def mark(self, stage: int) -> None:
        """Note how far the effects of the state saved last have come."""
        os.pwrite(self.fd, _PROGRESS.pack(self._sequence, stage), _PROGRESS_AT)

    def next_generation(self) -> int:
        """An even generation that no supervisor has used; it wraps after 2**31 of them."""
        (last,) = _GENERATION.unpack(os.pread(self.fd, _GENERATION.size, _GENERATION_AT))
        generation = (last + 2) % (1 << 32) or 2
        os.pwrite(self.fd, _GENERATION.pack(generation), _GENERATION_AT)
        return int(generation)

    def load(self) -> tuple[SavedState, int]:
        """The state saved last, if there is one that can be read, and its stage."""
        best = max(self._halves(), default=None)
        if best is None:
            return SavedState(), 0
        self._sequence = best[0]  # go on counting where the supervisor before has stopped
        layout, content = json.loads(best[1])
        sequence, stage = _PROGRESS.unpack(os.pread(self.fd, _PROGRESS.size, _PROGRESS_AT))
        if layout != LAYOUT:
            return SavedState(), 0
        return SavedState.decode(content), stage if sequence == best[0] else 0

    def _halves(self) -> Iterable[tuple[int, bytes]]:
        for start in (0, HALF):
            sequence, length, checksum = _HEADER.unpack(os.pread(self.fd, _HEADER.size, start))
            if not sequence or length > HALF - _HEADER.size:
                continue
            text = os.pread(self.fd, length, start + _HEADER.size)
            if _checksum(sequence, text) == checksum:
                yield sequence, text


class Outbox:
    """Replies on their way out, each behind the one before; see THEORY.

    The socket refers to the file's pages until the front-end has read them, so a page is used
    again only when OUTBOX_BYTES of replies came after it.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> "Outbox":
        return cls(create_segment("vfsd-replies", OUTBOX_BYTES))

    def start(self) -> int:
        """Where the next reply belongs."""
        if self._position() > OUTBOX_BYTES - OUTBOX_REPLY:
            os.lseek(self.fd, 0, os.SEEK_SET)
        return self._position()

    def send(self, sock: socket.socket, data: bytes, start: int) -> None:
        """Send what is not sent yet of the reply that belongs at `start`."""
        os.pwrite(self.fd, data, start)
        while (left := start + len(data) - self._position()) > 0:
            os.sendfile(sock.fileno(), self.fd, None, left)

    def _position(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_CUR)


def _checksum(sequence: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(sequence.to_bytes(8, "little")))


def consume_again(sock: socket.socket, message: SavedMessage) -> None:
    """Take a message off the socket if it is still there."""
    data = HEADER.pack(message.number, message.flags, len(message.payload)) + message.payload
    try:
        if sock.recv(len(data), socket.MSG_PEEK) == data:
            sock.recv(len(data))
    except OSError:
        pass  # nothing there, or the VMM has gone: the next look at the socket tells


def open_fds() -> set[int]:
    """The numbers in this process's fd table."""
    fds = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    return {fd for fd in fds if _is_open(fd)}  # less the one that listed them


def sweep(keep: set[int]) -> list[int]:
    """Close every fd that is not in `keep`; returns which."""
    orphans = sorted(open_fds() - keep)
    for fd in orphans:
        os.close(fd)
    return orphans


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
