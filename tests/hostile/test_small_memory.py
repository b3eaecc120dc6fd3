# SPDX-License-Identifier: Apache-2.0
"""A container with little memory, and a guest that learns more files than fit: the share lives on,
and the log says so before the limit is reached."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.system.mounted import Mounted
from tests.waiting import HANG

from .control_group import MemoryGroup, memory_group
from .daemon import OURS, Daemon

LIMIT = 80 << 20  # what KubeVirt allows by default
QUEUES = 8
FOLDERS, FILES = 300, 1000
# For each way to hold inodes: how many folders the guest looks at, and the lines that it leads to.
CASES = {
    "auto": (FOLDERS, ["four fifths of the", "files, as many as it may know"]),
    "never": (30, ["the guest gets ENFILE"]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    for what in ("root", "/dev/fuse"):
        require(what)
    folder = tmp_path_factory.mktemp("many")
    folder.chmod(0o755)
    for name in map(str, range(FOLDERS)):
        (folder / name).mkdir()
        for number in range(FILES):
            os.mknod(folder / name / str(number))
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    with memory_group() as group:
        group.limit(LIMIT)
        yield group


@pytest.mark.parametrize("handles", CASES)
def test_a_guest_that_learns_all_files(
    handles: str, files: Path, group: MemoryGroup, tmp_path: Path
) -> None:
    command = group.starting(*OURS)
    with Daemon(f"--inode-file-handles={handles}", program=command, share=files) as daemon:
        mount = (daemon.socket, f"--queues={QUEUES}")
        with Mounted(tmp_path, *mount) as mounted:
            before = daemon.pids()
            assert sum("worker" in title for title in before.values()) == QUEUES
            folders, lines = CASES[handles]
            found = subprocess.run(
                ["find", *map(str, range(folders)), "-type", "f", "-size", "0", "-printf", "."],
                cwd=mounted.path, capture_output=True, timeout=HANG, check=False,
            )  # fmt: skip
            assert len(found.stdout) > FILES
            assert b"Too many open files in system" in found.stderr
            log = daemon.log.read_text()
            places = [log.find(line) for line in lines]
            assert -1 not in places, log
            assert places == sorted(places)
            Path("/proc/sys/vm/drop_caches").write_text("2")
            (mounted.path / "0/0").write_text("content")
            assert (files / "0/0").read_text() == "content"
            (files / "0/0").write_text("")
            assert daemon.pids() == before
            assert group.kills() == 0
            assert mounted.unmount() == 0
