# SPDX-License-Identifier: Apache-2.0
"""What a supervisor leaves to its successor: one JSON object in a shared segment.

THEORY

Purpose. No VMM reconnects a virtio-fs device, so the connection must outlive the supervisor. The
keeper shares the supervisor's fd table and therefore still holds every fd when the supervisor is
gone; what the numbers mean is in this segment. A successor reads it, closes what it does not
mention, and goes on.

Writing. The segment has two halves, each a header (sequence number, length, CRC-32) and a JSON
text. save() writes the half that load() would not read. A writer that dies in between leaves a
half whose checksum is wrong, and load() takes the other one.

What a message goes through, so that dying at any point loses nothing:
  1. peek: the message stays on the socket, its fds are duplicates;
  2. the session handles it; save(state after it, the effects still to be carried out, the message);
  3. consume: now it is off the socket;
  4. the effects are carried out, the reply last; save(state, no effects).
A successor finds the socket and the last state saved:
  dead before 2    the message is on the socket and is handled as if it had just come; the
                   duplicates of its fds are closed by the sweep
  dead in 2 to 3   the saved message equals what is on the socket: consume it, then as below
  dead in 4        carry out the effects (each is idempotent; Close was done by the sweep)

What it does not cover. Between sending a reply and save() the reply would be sent twice; between
accept() and save() the connection is closed by the sweep; a message that arrived in pieces has
left the socket before it is complete. Each is some microseconds, and the front-end notices. fds
that the pool has installed but whose numbers were not saved stay open in the pool until it ends.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from vfsd.transport.shared_memory import create_segment

_HEADER: Final = struct.Struct("=QII")  # sequence, length, CRC-32
HALF: Final = 1 << 20
LAYOUT: Final = 1


class StateFile:
    """The segment; owns nothing but the number of its fd, which the keeper holds open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._sequence = max((half[0] for half in self._halves()), default=0)

    @classmethod
    def create(cls) -> "StateFile":
        return cls(create_segment("vfsd-supervisor-state", 2 * HALF))

    def save(self, state: dict[str, Any]) -> None:
        text = json.dumps({"layout": LAYOUT, **state}, separators=(",", ":")).encode()
        if len(text) > HALF - _HEADER.size:
            raise ValueError(f"a state of {len(text)} bytes")
        self._sequence += 1
        header = _HEADER.pack(self._sequence, len(text), _checksum(self._sequence, text))
        os.pwrite(self.fd, header + text, self._sequence % 2 * HALF)

    def load(self) -> dict[str, Any] | None:
        """The state saved last; None if there is none that can be read."""
        best = max(self._halves(), default=None)
        if best is None:
            return None
        state: dict[str, Any] = json.loads(best[1])
        return state if state.get("layout") == LAYOUT else None

    def _halves(self) -> Iterable[tuple[int, bytes]]:
        for start in (0, HALF):
            sequence, length, checksum = _HEADER.unpack(os.pread(self.fd, _HEADER.size, start))
            if not sequence or length > HALF - _HEADER.size:
                continue
            text = os.pread(self.fd, length, start + _HEADER.size)
            if _checksum(sequence, text) == checksum:
                yield sequence, text


def _checksum(sequence: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(sequence.to_bytes(8, "little")))


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
