# SPDX-License-Identifier: Apache-2.0
"""What the files contain, and what a reader may find: the model.

Each file has PAGES pages, and each page is one number, its version, again and again. Before a
change the changer writes down which version begins, and after the change that it is done. A reader
that opens the file in between may find both versions. A version is stale if a newer version was
done before the file was opened.
"""

import mmap
import os
import struct
from pathlib import Path
from typing import Final, Self

PAGE: Final = 4096
PAGES: Final = 3
FILE_BYTES: Final = PAGE * PAGES
WORDS: Final = PAGE // 8


def page_of(version: int) -> bytes:
    return struct.pack("<Q", version) * WORDS


class Board:
    """Shared by all processes. `begun` and `done`: a version for each page of each file. `hot`: the
    file that each changer is about to change."""

    def __init__(self, path: Path, files: int, changers: int) -> None:
        self.files = files
        self.changers = changers
        fd = os.open(path, os.O_RDWR)
        try:
            words = memoryview(mmap.mmap(fd, self.size(files, changers))).cast("Q")
        finally:
            os.close(fd)
        pages = files * PAGES
        self.begun, self.done = words[:pages], words[pages : 2 * pages]
        self.hot = words[2 * pages :]

    @staticmethod
    def size(files: int, changers: int) -> int:
        return 8 * (2 * files * PAGES + changers)

    @classmethod
    def create(cls, path: Path, files: int, changers: int) -> Self:
        path.write_bytes(bytes(cls.size(files, changers)))
        return cls(path, files, changers)

    def begin(self, file: int, pages: range, version: int) -> None:
        for page in pages:
            self.begun[file * PAGES + page] = version

    def finish(self, file: int, pages: range, version: int) -> None:
        for page in pages:
            self.done[file * PAGES + page] = version

    def oldest(self, file: int) -> list[int]:
        """The versions that a reader must find or see replaced, if it opens the file now."""
        return self.done[file * PAGES : (file + 1) * PAGES].tolist()

    def newest(self, file: int) -> list[int]:
        return self.begun[file * PAGES : (file + 1) * PAGES].tolist()


def name_of(file: int) -> str:
    return f"f{file:04}"


def wrong_pages(data: bytes, oldest: list[int], newest: list[int]) -> list[str]:
    """What is wrong with the data of a reader; pages that are missing are not wrong: the size of a
    file is an attribute, which has a timeout."""
    wrong = []
    for page, (low, high) in enumerate(zip(oldest, newest, strict=True)):
        found = data[page * PAGE : (page + 1) * PAGE]
        if not found or found == page_of(low):
            continue
        words = set(struct.unpack(f"<{len(found) // 8}Q", found[: len(found) // 8 * 8]))
        if low < high:
            words.discard(0)  # a page beyond the end of a file that is being written again
        if words and (min(words) < low or max(words) > high):
            wrong.append(f"page {page} has {sorted(words)[:4]}, not {low} to {high}")
    return wrong
