# SPDX-License-Identifier: Apache-2.0
"""Trees of more files than the daemon may have file descriptors.

VFSD_TESTS_DEEP=1 makes the trees 300,000 files large and the limit 4,096 descriptors.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from .conftest import MEMORY, Backend, Share, serve
from .mounted import run

DEEP = os.environ.get("VFSD_TESTS_DEEP") == "1"
FILES = 300_000 if DEEP else 20_000
LIMIT = 4096 if DEEP else 1024
A_FOLDER = 1000


def fill(folder: Path, files: int) -> None:
    for number in range(0, files, A_FOLDER):
        home = folder / f"d{number}"
        home.mkdir()
        for i in range(min(A_FOLDER, files - number)):
            os.close(os.open(home / f"f{i}", os.O_CREAT | os.O_WRONLY))


def most_fds(share: Share) -> int:
    """The number of fds of the daemon's process with the most fds, which is the pool."""
    family = psutil.Process(share.daemon.process.pid).children(recursive=True)
    return max(process.num_fds() for process in family)


@pytest.fixture(params=["prefer", "never"])
def limited(request: pytest.FixtureRequest) -> Iterator[tuple[Share, str]]:
    options = (f"--inode-file-handles={request.param}", f"--rlimit-nofile={LIMIT}")
    with ExitStack() as stack:
        yield serve(Backend("", 2, options), stack, MEMORY), request.param


def test_find_over_more_files_than_descriptors(limited: tuple[Share, str]) -> None:
    """With file handles every call succeeds. Without handles each name is listed, and each call
    that fails returns ENFILE."""
    share, mode = limited
    fill(share.host, FILES)
    names = run("find . -type f -printf '%f\\n' 2>/dev/null | wc -l || true", share.mount, 200)
    listed = run("ls -UR . 2>/dev/null | grep -c '^f' || true", share.mount, 200)
    assert most_fds(share) <= LIMIT
    if mode == "prefer":
        assert (int(names), int(listed)) == (FILES, FILES)
        sizes = run("find . -type f -printf '%s %i\\n' | wc -l", share.mount, 200)
        assert int(sizes) == FILES
        return
    # Folders cannot be opened past the limit. From a folder that is opened, no name is missing.
    assert int(listed) % A_FOLDER == 0
    errors = run("find . -type f -size +0 2>&1 >/dev/null | head -50", share.mount, 200)
    assert all("Too many open files in system" in line for line in errors.splitlines())
    run("sync; echo 2 >/proc/sys/vm/drop_caches; ls d0 >/dev/null; cat d0/f0", share.mount)
