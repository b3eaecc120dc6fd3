# SPDX-License-Identifier: Apache-2.0
"""The content of a directory, in a form in which a share can be compared with the host."""

import os
import stat
import time
from dataclasses import dataclass
from typing import Final

TICK_SECONDS: Final = 0.012  # longer than a timer tick: later timestamps differ


@dataclass(frozen=True)
class Entry:
    """The result of lstat(2), without the members that always differ: inode and device numbers, and
    times."""

    mode: str
    nlink: int
    owner: tuple[int, int]
    size: int
    rdev: int
    target: str


def entry(path: str) -> Entry:
    st = os.lstat(path)
    size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
    mode = stat.filemode(st.st_mode)
    target = os.readlink(path) if stat.S_ISLNK(st.st_mode) else ""
    return Entry(mode, st.st_nlink, (st.st_uid, st.st_gid), size, st.st_rdev, target)


def snapshot(folder: str = ".") -> dict[str, Entry]:
    """Path in a folder -> entry, for every file below the folder."""
    found = {".": entry(folder)}
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(f"{folder}/{below}") as files:
            for file in files:
                path = below + file.name
                found[path] = entry(f"{folder}/{path}")
                if file.is_dir(follow_symlinks=False):
                    pending.append(path + "/")
    return found


def mode_of(path: str | int) -> str:
    st = os.stat(path) if isinstance(path, int) else os.lstat(path)
    return oct(stat.S_IMODE(st.st_mode))


def times(path: str | int) -> dict[str, int]:
    st = os.stat(path) if isinstance(path, int) else os.lstat(path)
    return {"atime": st.st_atime_ns, "mtime": st.st_mtime_ns, "ctime": st.st_ctime_ns}


def changed(before: dict[str, int], after: dict[str, int]) -> str:
    """The names of the times that have changed, with BACK after a time that has gone backwards."""
    return " ".join(
        name if after[name] > before[name] else f"{name} BACK"
        for name in before
        if after[name] != before[name]
    )


def tick() -> None:
    time.sleep(TICK_SECONDS)


def make(path: str, data: bytes = b"", mode: int = 0o644) -> str:
    """Create a file with this content and exactly this mode; returns its path."""
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)
    return path


def make_dir(path: str, mode: int = 0o755) -> str:
    os.mkdir(path)
    os.chmod(path, mode)
    return path


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
