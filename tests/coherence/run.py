# SPDX-License-Identifier: Apache-2.0
"""One run: a directory that two guests have mounted, processes of the host and of one guest that
change its files, and processes of both guests that read them."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from tests.waiting import HANG
from vfsd.bench.counted_mount import counted_mount
from vfsd.frontend.backend_process import own_backend
from vfsd.frontend.bridge import Bridges

from .board import PAGES, Board, name_of, page_of
from .changes import IN_PLACE, OF_A_GUEST, OF_THE_SIZE
from .processes import Result, Task

ROOT: Final = Path(__file__).resolve().parents[2]
GUESTS: Final = 2
READERS: Final = 2  # of each guest
QUEUES: Final = 2
CHANGERS: Final = 3  # two processes of the host and one of the first guest


@dataclass(frozen=True)
class World:
    """How the guests mount the directory, and how its files are changed. Where attributes are never
    asked for again, nothing but OPEN can show a guest that a file has changed; where they are asked
    for each time, files may also get another size or name."""

    options: tuple[str, ...]
    ways: tuple[str, ...]
    mapped: float  # how often a reader maps a file


WORLDS: Final = {
    "opens": World(("--timeout=86400",), IN_PLACE, 0.3),
    "names": World(("--timeout=0",), IN_PLACE + OF_THE_SIZE, 0.0),
}


@dataclass(frozen=True)
class Outcome:
    changes: Counter[str]
    opens: int
    wrong: list[str]
    sent: Counter[str]  # the requests of both guests


def run(folder: Path, world: World, seconds: float, files: int, cache: str = "auto") -> Outcome:
    """Race for `seconds`. `folder` is on the file system that is to be shared."""
    share = folder / "share"
    share.mkdir()
    for file in range(files):
        (share / name_of(file)).write_bytes(page_of(0) * PAGES)
    Board.create(folder / "board", files, CHANGERS)
    with ExitStack() as stack:
        options = [*world.options, f"--cache={cache}", "--log-level=error"]
        mounts, bridges = [], []
        for guest in range(GUESTS):
            mounts.append(folder / f"guest{guest}")
            bridges.append(stack.enter_context(_mounted(share, mounts[-1], options)))
        results = _race(folder / "board", files, world, [share, *mounts], seconds)
        sent = sum((each.sent() for each in bridges), Counter[str]())
    return _total(results, sent)


@contextmanager
def _mounted(share: Path, target: Path, options: Sequence[str]) -> Iterator[Bridges]:
    target.mkdir()
    arguments = [f"--request-queues={QUEUES}", *options]
    with own_backend(str(share), arguments) as vmm, counted_mount(vmm, str(target), QUEUES) as ret:
        yield ret


def _race(
    board: Path, files: int, world: World, places: Sequence[Path], seconds: float
) -> list[Result]:
    """`places`: the directory, and where each guest has mounted it."""
    share, *mounts = places
    any_task = Task(str(board), files, CHANGERS, "", time.monotonic() + seconds)
    tasks = [
        replace(any_task, share=str(mounts[seed % GUESTS]), mapped=world.mapped, seed=seed)
        for seed in range(GUESTS * READERS)
    ]
    for number in range(CHANGERS):
        is_guest = number == CHANGERS - 1
        place, ways = (mounts[0], OF_A_GUEST) if is_guest else (share, world.ways)
        task = replace(any_task, share=str(place), ways=list(ways), number=number, seed=number)
        tasks.append(task)
    processes = [_start(task) for task in tasks]
    try:
        return [_result(process, seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start(task: Task) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "tests.coherence.processes", json.dumps(asdict(task))]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _result(process: "subprocess.Popen[str]", seconds: float) -> Result:
    output, _ = process.communicate(timeout=seconds + HANG)
    assert process.returncode == 0, f"a process ended with {process.returncode}"
    return Result(**json.loads(output))


def _total(results: Sequence[Result], sent: Counter[str]) -> Outcome:
    changes = Counter[str]()
    for result in results:
        changes.update(result.changes)
    opens = sum(result.opens for result in results)
    return Outcome(changes, opens, [text for result in results for text in result.wrong], sent)
