# SPDX-License-Identifier: Apache-2.0
"""The processes that change files, and those that read the files through a mount:
python -m tests.coherence.processes TASK, where TASK is a Task in JSON. Prints a Result in JSON."""

import ctypes
import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from .board import FILE_BYTES, PAGES, Board, name_of, wrong_pages
from .changes import ALL, OF_THE_SIZE, Changer

REST_SECONDS: Final = 12.0  # a guest keeps only what has not changed for ten seconds
AGAIN: Final = 0.3  # how often the next change follows within a tick of the clock
SYNCED: Final = 0.8  # how often the host has written the file back when it rests
ON_A_HOT_FILE: Final = 0.7  # how often a reader opens a file that is about to change
WRONG_MAX: Final = 10
LIBC: Final = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@dataclass(frozen=True)
class Task:
    """What one process is to do. `ways`: of changing files; a process without any reads. `number`:
    of the changer. `mapped`: how often a reader maps the file; 0 if files get shorter."""

    board: str
    files: int
    changers: int
    share: str
    until: float  # time.monotonic()
    ways: list[str] = field(default_factory=list)
    number: int = 0
    mapped: float = 0.0
    seed: int = 0

    def open_board(self) -> Board:
        return Board(Path(self.board), self.files, self.changers)


@dataclass
class Result:
    """What a process has done, and what it has found wrong."""

    changes: dict[str, int] = field(default_factory=dict)
    opens: int = 0
    wrong: list[str] = field(default_factory=list)


def change_files(task: Task) -> Result:
    """Change one file after the other, and each of them again after REST_SECONDS."""
    board, rng = task.open_board(), random.Random(task.seed)  # noqa: S311
    changer = Changer(Path(task.share))
    own = range(task.number, task.files, task.changers)
    counts = dict.fromkeys(task.ways, 0)
    version = 1
    while time.monotonic() < task.until:
        for file in rng.sample(own, len(own)):
            board.hot[task.number] = file
            time.sleep(REST_SECONDS / len(own) * rng.uniform(0.5, 1.5))
            for _ in range(2 if rng.random() < AGAIN else 1):
                version += 1
                way = rng.choice(task.ways)
                _change(board, getattr(changer, way), way, file, version, rng)
                counts[way] += 1
            if rng.random() < SYNCED:
                changer.sync(file)
            if time.monotonic() >= task.until:
                break
    return Result(changes=counts)


def _change(
    board: Board,
    way: Callable[[int, range, int], None],
    name: str,
    file: int,
    version: int,
    rng: random.Random,
) -> None:
    first = rng.randrange(PAGES)
    is_whole = name in OF_THE_SIZE or rng.random() < 0.5
    pages = ALL if is_whole else range(first, first + 1)
    board.begin(file, pages, version)
    way(file, pages, version)
    board.finish(file, pages, version)


def read_files(task: Task) -> Result:
    """Open and read files, most often those that are about to change."""
    board, rng, share = task.open_board(), random.Random(task.seed), Path(task.share)  # noqa: S311
    opens, wrong = 0, list[str]()
    while time.monotonic() < task.until and len(wrong) < WRONG_MAX:
        for _ in range(100):
            file = rng.randrange(task.files)
            if rng.random() < ON_A_HOT_FILE:
                file = board.hot[rng.randrange(task.changers)]
            is_mapped = rng.random() < task.mapped
            wrong += [f"file {file}: {text}" for text in _read(share, board, file, is_mapped)]
            opens += 1
    return Result(opens=opens, wrong=wrong)


def _read(share: Path, board: Board, file: int, is_mapped: bool) -> list[str]:
    oldest = board.oldest(file)
    fd = os.open(share / name_of(file), os.O_RDONLY)
    try:
        data = _mapped(fd) if is_mapped else os.read(fd, 1 << 20)
    finally:
        os.close(fd)
    return wrong_pages(data, oldest, board.newest(file))


def _mapped(fd: int) -> bytes:
    """Not by Python's mmap, which looks at the attributes: a guest that asks for them again learns
    more than from OPEN alone."""
    address = LIBC.mmap(None, FILE_BYTES, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    try:
        return ctypes.string_at(address, FILE_BYTES)
    finally:
        LIBC.munmap(address, FILE_BYTES)


if __name__ == "__main__":
    wanted = Task(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(change_files(wanted) if wanted.ways else read_files(wanted))))
