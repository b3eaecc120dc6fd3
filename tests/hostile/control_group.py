# SPDX-License-Identifier: Apache-2.0
"""A control group with a limit of memory, version 2 where the host has it, else version 1."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.conftest import require

from .daemon import wait_until

TOP: Final = Path("/sys/fs/cgroup")


class MemoryGroup:
    """One control group; `path` is its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_v2 = (path / "memory.max").exists()

    def limit(self, size: int) -> None:
        name = "memory.max" if self._is_v2 else "memory.limit_in_bytes"
        (self.path / name).write_text(str(size))

    def kills(self) -> int:
        """How many processes the kernel has killed because the memory ran out."""
        name = "memory.events" if self._is_v2 else "memory.oom_control"
        found = re.search(r"^oom_kill (\d+)$", (self.path / name).read_text(), re.MULTILINE)
        assert found
        return int(found[1])

    def starting(self, *command: str) -> list[str]:
        """A command line that runs `command` in the group."""
        return ["sh", "-c", 'echo $$ >"$0"; exec "$@"', str(self.path / "cgroup.procs"), *command]

    def remove(self) -> None:
        wait_until(lambda: not (self.path / "cgroup.procs").read_text(), 10, "the group is empty")
        self.path.rmdir()


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A new group below the one of this process's host."""
    require("root")
    parent = TOP / "memory" if (TOP / "memory").is_dir() else TOP
    path = parent / f"vfsd-test-{os.getpid()}"
    path.mkdir()
    group = MemoryGroup(path)
    try:
        yield group
    finally:
        group.remove()
