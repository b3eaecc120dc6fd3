# SPDX-License-Identifier: Apache-2.0
"""An input as a stream of small decisions; an input that is too short ends in zeroes."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Reader:
    """Takes decisions from the front of an input."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """True while there are bytes left."""
        return self._at < len(self._data)

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes, or the bytes that are left if they are fewer."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def number(self, size: int = 1) -> int:
        """An unsigned number of `size` bytes."""
        return int.from_bytes(self.bytes(size), "little")

    def choice(self, of: Sequence[T]) -> T:
        return of[self.number() % len(of)]

    def text(self) -> str:
        """Some text; bytes that are not UTF-8 are escaped as in the arguments of a process."""
        return self.bytes(self.number()).decode(errors="surrogateescape").replace("\0", "")
