# SPDX-License-Identifier: Apache-2.0
"""A cgroup in which memory can be made short, so that the kernel kills a process of the daemon."""

import errno
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.waiting import HANG, wait_until

LIMIT: Final = 384 << 20  # bytes; a daemon with four workers needs a quarter
CGROUP: Final = Path("/sys/fs/cgroup")
# Takes memory in the group until the kernel has killed a process. The memory is that of a file and
# not of this process. The kernel chooses a worker or the pool, whose score is higher; this process,
# if all of these are dead at the moment; and never a process that is not created again.
HOG: Final = """
import os, re, sys
from pathlib import Path
group, events = Path(sys.argv[1]), Path(sys.argv[2])
Path("/proc/self/oom_score_adj").write_text("250")
(group / "cgroup.procs").write_text("0")
def kills():
    return int(re.search(r"^oom_kill (\\d+)", events.read_text(), re.M)[1])
before, fd = kills(), os.memfd_create("hog")
while kills() == before:
    os.write(fd, bytes(1 << 20))
"""


class MemoryGroup:
    """A group of its own with a limit of LIMIT bytes, in cgroup v1 or v2."""

    def __init__(self, folder: Path, limit: str, events: str) -> None:
        self.folder = folder
        self._events = folder / events
        (folder / limit).write_text(str(LIMIT))

    def enter(self) -> list[str]:
        """A command to put in front of another command, which then runs in the group."""
        return ["sh", "-c", 'echo 0 >"$0" && exec "$@"', str(self.folder / "cgroup.procs")]

    def oom(self) -> None:
        """Make memory short until the kernel has killed a process."""
        argv = [sys.executable, "-c", HOG, str(self.folder), str(self._events)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=HANG, check=False)
        assert done.returncode in (0, -signal.SIGKILL), f"the hog ended with {done.returncode}"


@contextmanager
def memory_group() -> Iterator[MemoryGroup | str]:
    """A new group, or the reason why there can be none."""
    made = _create()
    try:
        yield made
    finally:
        if isinstance(made, MemoryGroup):
            wait_until(lambda: _is_removed(made.folder), 5, "the group is empty")


def _is_removed(folder: Path) -> bool:
    """Remove a group; False if it still has a process, which was killed and has not ended yet."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _create() -> MemoryGroup | str:
    is_v2 = (CGROUP / "cgroup.controllers").exists()
    parent = CGROUP if is_v2 else CGROUP / "memory"
    names = ("memory.max", "memory.events") if is_v2 else ("memory.limit_in_bytes",
                                                           "memory.oom_control")  # fmt: skip
    try:
        if is_v2:
            (CGROUP / "cgroup.subtree_control").write_text("+memory")
        return MemoryGroup(Path(tempfile.mkdtemp(prefix="vfsd-chaos-", dir=parent)), *names)
    except OSError as error:
        return f"no memory cgroup can be made: {error}"
