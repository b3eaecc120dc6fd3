# SPDX-License-Identifier: Apache-2.0
"""How large the inode table may become: by the option, the host, and control groups."""

import resource
from dataclasses import replace
from pathlib import Path

import pytest

from vfsd.supervisor import inode_limit as of
from vfsd.supervisor.file_limit import FEWEST, default_limit
from vfsd.supervisor.options import Options
from vfsd.transport.option_types import INODES_MAX

MIB = 1 << 20
HOST = 8000 * MIB


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "meminfo").write_text(f"MemTotal: {HOST // 1024} kB\nMemFree: 1 kB\n")
    return tmp_path


def limit(machine: Path, membership: str, **files: str) -> int:
    (machine / "cgroup").write_text(membership)
    for name, text in files.items():
        path = machine / "fs" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return of.memory_limit(machine / "meminfo", machine / "cgroup", machine / "fs")


def test_the_host_alone(machine: Path) -> None:
    assert limit(machine, "") == HOST
    assert limit(machine, "0::/a\n", a__memory_DOT_max="max\n") == HOST


@pytest.mark.parametrize("below", ["80", "max"])
def test_the_smallest_limit_above_counts(machine: Path, below: str) -> None:
    inner = below if below == "max" else str(int(below) * MIB)
    found = limit(
        machine, "0::/a/b\n", a__memory_DOT_max=str(100 * MIB), a__b__memory_DOT_max=inner
    )
    assert found == (100 if below == "max" else 80) * MIB


def test_version_1_and_a_path_that_is_not_there(machine: Path) -> None:
    found = limit(
        machine,
        "4:memory:/docker/0123\n1:cpu:/x\n0::/\n",
        memory__memory_DOT_limit_in_bytes=str(64 * MIB),
    )
    assert found == 64 * MIB


def table(
    monkeypatch: pytest.MonkeyPatch, memory: int, has_handles: bool = True, n: int = 0
) -> int:
    monkeypatch.setattr(of, "memory_limit", lambda **_: memory)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, 4096))
    return of.inode_limit(replace(Options(), workers=8, inode_limit=n), has_handles)


def test_a_small_group_has_a_small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(monkeypatch, 80 * MIB)
    assert of.FEWEST < found < 100_000
    need = of.PROCESSES_BYTES + 8 * of.WORKER_BYTES
    assert need + found * of.BYTES_PER_INODE <= 80 * MIB
    assert table(monkeypatch, 80 * MIB, has_handles=False) == of.FEWEST


def test_a_large_host_has_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(monkeypatch, 16 << 30) > 100_000_000
    assert table(monkeypatch, 1 << 50) == INODES_MAX
    assert table(monkeypatch, 16 << 30, n=5) == 5


@pytest.mark.parametrize(("asked", "part"), [(0, 4), (10**9, 1)])
def test_a_host_without_control_groups_keeps_most_of_its_memory(
    asked: int, part: int, monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    """--inode-limit allows more."""
    whole = of.memory_limit
    monkeypatch.setattr(
        of,
        "memory_limit",
        lambda host_part=1: whole(
            machine / "meminfo", machine / "cgroup", machine / "fs", host_part
        ),
    )
    left = of.memory_left(replace(Options(), workers=1, inode_limit=asked))
    assert left == HOST // part - of.PROCESSES_BYTES - of.WORKER_BYTES


def test_fds_are_fewer_where_memory_is_small() -> None:
    assert default_limit(True, 1 << 20, 1 << 40) == 100_000
    assert default_limit(True, 1 << 20, 1 << 40, memory=100 * MIB) == 25 * MIB // of.BYTES_PER_FD
    assert default_limit(True, 1 << 20, 1 << 40, memory=0) == FEWEST
