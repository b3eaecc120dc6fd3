# SPDX-License-Identifier: Apache-2.0
"""Random I/O against a model, in every cache mode. VFSD_POSIX_DEEP=1 does fifty times as many
operations."""

import os
import random
from functools import partial

import pytest

from .conftest import (
    ALWAYS,
    DEEP,
    DIRECT,
    FOUR_QUEUES,
    NEVER,
    NO_KILLPRIV,
    ONE_QUEUE,
    WRITEBACK,
    in_memory,
    shares,
)
from .exerciser import SIZE_MAX, Exerciser
from .process import all_results, in_child
from .share import HOST, Place

OPERATIONS = 150
SEEDS = range(100, 200) if DEEP else (1, 2)
PROCESSES = 4
BOUND_SECONDS = 100.0

EVERYWHERE = shares(
    HOST, ONE_QUEUE, FOUR_QUEUES, NEVER, ALWAYS, WRITEBACK, DIRECT, in_memory(FOUR_QUEUES),
    deep=(NO_KILLPRIV,),
)  # fmt: skip


@EVERYWHERE
@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_holds_what_was_done_to_it(share: Place, seed: int) -> None:
    folder = share.new_folder()

    def exercise() -> bytes:
        exerciser = Exerciser(str(folder.path / "file"), seed)
        exerciser.run(OPERATIONS)
        return exerciser.content()

    content = in_child(exercise, BOUND_SECONDS)
    os.sync() if share.setup == WRITEBACK else None
    assert (folder.host / "file").read_bytes() == content


@EVERYWHERE
@pytest.mark.parametrize("seed", SEEDS[:1])
def test_processes_on_ranges_of_their_own_do_not_disturb_each_other(
    share: Place, seed: int
) -> None:
    folder = share.new_folder()
    path = str(folder.path / "file")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    os.truncate(path, SIZE_MAX)
    edges = [0, *sorted(random.Random(seed).sample(range(1, SIZE_MAX), PROCESSES - 1)), SIZE_MAX]  # noqa: S311

    def exercise(child: int) -> bytes:
        begin, end = edges[child], edges[child + 1]
        exerciser = Exerciser(path, seed * PROCESSES + child, begin=begin, end=end)
        exerciser.run(OPERATIONS)
        return exerciser.content()[begin:end]

    pieces = all_results([partial(exercise, child) for child in range(PROCESSES)], BOUND_SECONDS)
    os.sync() if share.setup == WRITEBACK else None
    assert (folder.host / "file").read_bytes() == b"".join(pieces)
