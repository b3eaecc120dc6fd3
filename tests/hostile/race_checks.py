# SPDX-License-Identifier: Apache-2.0
"""What must hold in a race, seen from outside: what is open, and what is beside the share."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from .daemon import Daemon

# Files of the sandbox's own /proc that its processes have open, by the paths of either namespace:
# the pool's oom_score_adj (vfsd/worker/oom_score.py), and a worker's folder of fds.
OOM_SCORE = re.compile(r"(/proc)?/\d+/oom_score_adj")
FD_FOLDER = re.compile(r"(/proc)?/\d+/fd")


class RaceError(AssertionError):
    """An invariant does not hold."""


def open_for_io(pid: int) -> Iterator[tuple[int, os.stat_result, str]]:
    """The fds of a process that are open for I/O on a file, each with its stat and its link."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            link = str(path.readlink())
            if not link.startswith("/") or link.startswith("/memfd:"):
                continue
            info = Path(f"/proc/{pid}/fdinfo/{path.name}").read_text()
            flags = int(info.split("flags:")[1].split()[0], 8)
            if not flags & os.O_PATH:
                yield int(path.name), path.stat(), link


def check_fds(daemon: Daemon) -> None:
    """Every file that the pool has open for I/O is a regular file or a directory of the share."""
    device = daemon.share.stat().st_dev
    for pid in daemon.titled("pool"):
        for fd, st, link in open_for_io(pid):
            if st.st_dev != device and OOM_SCORE.fullmatch(link):
                continue
            # A subvolume of btrfs has a device number of its own; the tests make no subvolume.
            if st.st_dev != device or not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
                raise RaceError(f"fd {fd} of the pool is open on {link}, mode {st.st_mode:o}")


def picture(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every file in `folder`: mode, links, owner, size, and time of the last change."""
    found: dict[str, tuple[int, ...]] = {}
    for path in folder.rglob("*"):
        st = path.lstat()
        found[str(path)] = (st.st_mode, st.st_nlink, st.st_uid, st.st_size, st.st_ctime_ns)
    return found
