# SPDX-License-Identifier: Apache-2.0
"""Orphaned fds of dead workers, with real tables and a real fd table. This process stands for the
pool."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vfsd.transport.native import check, ffi, lib
from vfsd.transport.shared_memory import create_segment, map_segment, unmap_segment
from vfsd.worker import sweep
from vfsd.worker.sweep import Sweep
from vfsd.worker.tables import Tables

SLOTS = 2
CAPACITY = 64


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "INTERVAL_SECONDS", 0.0)


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Tables]:
    root = os.open(tmp_path, os.O_PATH)
    sizes = {
        "workers": ffi.sizeof("struct worker_table"),
        "inodes": lib.inode_table_bytes(CAPACITY),
        "files": lib.file_table_bytes(CAPACITY),
    }
    fds = {name: create_segment(name, size) for name, size in sizes.items()}
    mapped: dict[str, Any] = {name: map_segment(fd, sizes[name]) for name, fd in fds.items()}
    workers = ffi.cast("struct worker_table *", mapped["workers"])
    lib.worker_table_init(workers, SLOTS)
    check(lib.inode_table_init(mapped["inodes"], CAPACITY, root))
    lib.file_table_init(mapped["files"], CAPACITY)
    yield Tables(ffi.NULL, workers, mapped["inodes"], mapped["files"], ffi.NULL)
    for name, fd in fds.items():
        unmap_segment(mapped[name], sizes[name])
        os.close(fd)
    os.close(root)


@pytest.fixture
def proc() -> Iterator[int]:
    fd = os.open("/proc", os.O_PATH)
    yield fd
    os.close(fd)


def open_fds() -> set[int]:
    listed = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    return {fd for fd in listed if Path(f"/proc/self/fd/{fd}").is_symlink()}


def close_all(fds: set[int]) -> None:
    for fd in fds:
        os.close(fd)


NewSweep = Callable[[], Sweep]


@pytest.fixture
def new_sweep(tables: Tables, proc: int) -> NewSweep:
    ours = open_fds()
    return lambda: Sweep(tables, SLOTS, proc, lambda: ours, close_all)


def is_open(fd: int) -> bool:
    return fd in open_fds()


def looks(sweep_: Sweep, count: int = 4) -> int:
    """Look for orphans `count` times; returns how many fds were closed."""
    return sum(sweep_.look_if_due() for _ in range(count))


def test_nothing_is_looked_for_before_a_death(new_sweep: NewSweep) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    assert looks(new_sweep()) == 0
    assert is_open(fd)
    os.close(fd)


def test_an_orphan_is_closed_and_nothing_is_left(new_sweep: NewSweep) -> None:
    before = open_fds()
    os.open("/dev/null", os.O_RDONLY)
    sweep_ = new_sweep()
    sweep_.begin()
    assert looks(sweep_) == 1
    assert open_fds() == before
    assert sweep_.due is None


def test_the_sweep_waits_for_two_quiescent_points_of_a_busy_worker(
    new_sweep: NewSweep, tables: Tables
) -> None:
    row = tables.workers.rows[1]
    row.pid, row.epoch = 42, tables.workers.epoch
    fd = os.open("/dev/null", os.O_RDONLY)
    sweep_ = new_sweep()
    sweep_.begin()
    assert looks(sweep_) == 0
    assert is_open(fd)
    row.epoch = tables.workers.epoch  # the worker's first quiescent point
    assert looks(sweep_) == 0
    assert is_open(fd)
    row.epoch = tables.workers.epoch  # its second quiescent point
    assert looks(sweep_) == 1
    assert not is_open(fd)


def test_what_a_worker_is_about_to_close_is_let_alone(new_sweep: NewSweep, tables: Tables) -> None:
    row = tables.workers.rows[0]
    row.pid, row.epoch, row.loose_fds = 42, 0, 1
    fd = os.open("/dev/null", os.O_RDONLY)
    sweep_ = new_sweep()
    sweep_.begin()
    assert looks(sweep_, sweep.LOOKS + 5) == 0
    assert is_open(fd), "let alone for good"
    os.close(fd)
    assert sweep_.due is None


def test_a_number_that_was_used_again_is_no_orphan(new_sweep: NewSweep) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    sweep_ = new_sweep()
    sweep_.begin()
    assert sweep_.look_if_due() == 0
    other = os.open("/dev/zero", os.O_RDONLY)
    os.dup2(other, fd, inheritable=False)
    os.close(other)
    assert looks(sweep_) == 0
    assert is_open(fd)
    os.close(fd)


def test_the_sweep_spares_an_fd_that_its_holder_closes_after_the_first_round(
    new_sweep: NewSweep,
) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)  # opened by a worker, which enters it in a table …
    sweep_ = new_sweep()
    sweep_.begin()
    assert looks(sweep_, 2) == 0  # … and removes it from the table after the first round
    os.close(fd)
    assert os.open("/dev/zero", os.O_RDONLY) == fd
    assert looks(sweep_) == 0
    assert is_open(fd)
    os.close(fd)


def test_a_number_that_another_duplicate_has_now_is_no_orphan(tables: Tables, proc: int) -> None:
    """A file that is opened again gets a duplicate of the fd that it has (open_cache.h)."""
    opened = os.open("/dev/null", os.O_RDONLY)
    ours = open_fds()
    sweep_ = Sweep(tables, SLOTS, proc, lambda: ours, close_all)
    fd = os.dup(opened)
    sweep_.begin()
    for _ in range(4):
        assert sweep_.look_if_due() == 0
        os.close(fd)
        assert os.dup(opened) == fd
    assert is_open(fd)
    os.close(fd)
    os.close(opened)


def test_the_sweep_does_not_suspect_an_fd_that_was_closed_as_it_looked(
    tables: Tables, proc: int
) -> None:
    ours = open_fds()
    orphan, other = (os.open("/dev/null", os.O_RDONLY) for _ in range(2))
    closed: list[int] = []

    def spared() -> set[int]:
        if not closed:
            closed.append(other)
            os.close(other)
        return ours

    sweep_ = Sweep(tables, SLOTS, proc, spared, close_all)
    sweep_.begin()
    assert looks(sweep_) == 1
    assert not is_open(orphan)
    assert open_fds() == ours


@pytest.mark.parametrize("count", [0, 1, 900, 1024, 5000])
def test_all_fds_of_a_table_are_read(count: int) -> None:
    def read(_table: object, ret: Any, room: int) -> int:
        for i in range(min(count, room)):
            ret[i] = i
        return count

    assert sweep.read_fds(read, None) == set(range(count))


def test_the_dead_worker_clears_itself(new_sweep: NewSweep, tables: Tables) -> None:
    row = tables.workers.rows[0]
    row.pid, row.epoch, row.loose_fds = 42, 7, 3
    lib.worker_table_bury(tables.workers, 0)
    fd = os.open("/dev/null", os.O_RDONLY)
    sweep_ = new_sweep()
    sweep_.begin()
    assert looks(sweep_) == 1
    assert not is_open(fd)


def test_begin_asks_for_a_look_soon(new_sweep: NewSweep) -> None:
    sweep_ = new_sweep()
    sweep_.begin()
    assert sweep_.due is not None
    assert sweep_.due <= time.monotonic()
    assert looks(sweep_) == 0
