# SPDX-License-Identifier: Apache-2.0
"""A record in shared memory by which a process that may die at any point passes its state on.

The record has two halves, each a header (sequence number, length, CRC-32) and a JSON text. save()
writes the half that load() would not read. A process that dies during save() leaves a half whose
checksum is wrong, and load() takes the other half: so every save is done whole or not at all.
"""

import json
import struct
import zlib
from collections.abc import Iterable
from typing import Any, Final

_HEADER: Final = struct.Struct("=QII")  # sequence, length, CRC-32


class SavedRecord:
    """The record at the beginning of `memory`, a writable buffer; `half`: the bytes of each half.

    `sequence`: the number of the state that was saved or loaded last; 0: none.
    """

    def __init__(self, memory: Any, half: int) -> None:
        self._memory = memory
        self._half = half
        self.sequence = 0

    def save(self, content: Any) -> None:
        """Save what JSON can represent; ValueError if the text does not fit into a half."""
        text = json.dumps(content, separators=(",", ":")).encode()
        room = self._half - _HEADER.size
        if len(text) > room:
            raise ValueError(f"the state has {len(text)} bytes; expected at most {room}")
        self.sequence += 1
        header = _HEADER.pack(self.sequence, len(text), _checksum(self.sequence, text))
        start = self.sequence % 2 * self._half
        self._memory[start : start + len(header) + len(text)] = header + text

    def load(self) -> Any:
        """The content that was saved last; None if nothing can be read. Later saves go on counting
        from there."""
        best = max(self._halves(), default=None)
        if best is None:
            return None
        self.sequence = best[0]
        return json.loads(best[1])

    def _halves(self) -> Iterable[tuple[int, bytes]]:
        for start in (0, self._half):
            header = self._memory[start : start + _HEADER.size]
            sequence, length, checksum = _HEADER.unpack(header)
            if not sequence or length > self._half - _HEADER.size:
                continue
            begin = start + _HEADER.size
            text = bytes(self._memory[begin : begin + length])
            if _checksum(sequence, text) == checksum:
                yield sequence, text


def _checksum(sequence: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(sequence.to_bytes(8, "little")))
