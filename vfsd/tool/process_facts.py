# SPDX-License-Identifier: Apache-2.0
"""What only a privileged reader of /proc knows of the processes of a daemon: memory and fds."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vfsd.control.model import DaemonProcess, Status


def process_rows(status: Status) -> list[dict[str, Any]]:
    """The processes with "pss_kib" and "fds", which are None where this process may not look, and
    if the pids are of another pid namespace."""
    is_here = Path("/proc/self/ns/pid").stat().st_ino == status.pid_namespace
    return [asdict(process) | _own(process, is_here) for process in status.processes]


def _own(process: DaemonProcess, is_here: bool) -> dict[str, int | None]:
    found: dict[str, int | None] = {"pss_kib": None, "fds": None}
    folder = Path(f"/proc/{process.pid}")
    with suppress(OSError, LookupError, ValueError):
        if is_here:
            rollup = (folder / "smaps_rollup").read_text()
            found["pss_kib"] = int(rollup.partition("\nPss:")[2].split()[0])
            found["fds"] = sum(1 for _ in (folder / "fd").iterdir())
    return found


def name_of(pid: int) -> str:
    """The name of a process, "?" if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return "?"
