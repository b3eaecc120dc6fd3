# SPDX-License-Identifier: Apache-2.0
"""Who is below a process: found when somebody is to be killed.

Not by psutil, which takes 1 MiB in keeper and supervisor; imported only when it is needed, at the
end of a long life, it may have been upgraded and not fit any more.
"""

from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """The pids of everything below a process; none if it is gone."""
    parents = _parents()
    found = [pid]
    for parent in found:
        found += [child for child in parents if parents[child] == parent]
    return found[1:]


def _parents() -> dict[int, int]:
    """The parent of every process (proc(5): pid, comm in parentheses, state, ppid)."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = (entry / "stat").read_text(errors="replace")
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return parents
