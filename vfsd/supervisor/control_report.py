# SPDX-License-Identifier: Apache-2.0
"""The answers to "status" and "counters": the supervisor's facts, and what is in the tables and in
/proc.

Trust. The tables are written by the sandbox, which may have been taken over: every value is a
number that is shown and nothing else. No value is used as an index, and no pointer is followed. The
titles of processes are cut and made printable.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from vfsd.supervisor.descendants import Process, of_session, process_of
from vfsd.supervisor.segments import FILE_CAPACITY, WORKERS_BYTES
from vfsd.transport.control_messages import printable
from vfsd.transport.native import ffi, lib, text
from vfsd.transport.shared_memory import map_segment, unmap_segment

Facts = dict[str, Any]
TITLE_MAX: Final = 100  # characters
PROCESSES_MAX: Final = 500
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def status(facts: Facts, fds: Sequence[int]) -> Facts:
    """What a daemon is doing. `fds`: of the tables, or none; the caller keeps them."""
    report = facts | {"processes": _processes(facts), "pid_namespace": _pid_namespace()}
    report |= {"guest": None, "workers": [], "inodes": 0, "files": 0}
    if fds:
        workers, inodes, files = fds
        with _mapped(workers, WORKERS_BYTES) as memory:
            table: Any = ffi.cast("struct worker_table *", memory)
            report["guest"] = _guest(table.session)
            report["workers"] = [
                {"slot": slot, "pid": row.pid, "starts": row.starts}
                for slot, row in _rows(table, facts)
            ]
        with _mapped(inodes, lib.inode_table_bytes(facts["inode_limit"] + 1)) as memory:
            report["inodes"] = lib.inode_table_count(memory)
        with _mapped(files, lib.file_table_bytes(FILE_CAPACITY)) as memory:
            report["files"] = lib.file_table_count(memory)
    return report


def counters(facts: Facts, fds: Sequence[int]) -> Facts:
    """What workers have counted since their pool was started; for the arguments see status()."""
    report: Facts = {"ns": time.monotonic_ns(), "ops": [], "queues": [], "workers": []}
    if not fds:
        return report
    with _mapped(fds[0], WORKERS_BYTES) as memory:
        table: Any = ffi.cast("struct worker_table *", memory)
        rows = list(_rows(table, facts))
        report["ops"] = list(_ops(row for _, row in rows))
        report["workers"] = [_worker(slot, row) for slot, row in rows]
        report["queues"] = [
            {"index": queue["index"], "slot": queue["slot"]}
            | _numbers(table.vrings[queue["index"]])
            for queue in facts["queues"]
        ]
    return report


@contextmanager
def _mapped(fd: int, size: int) -> Iterator[Any]:
    memory = map_segment(fd, size, writable=False)
    try:
        yield memory
    finally:
        unmap_segment(memory, size)


def _rows(table: Any, facts: Facts) -> list[tuple[int, Any]]:
    """The rows of the slots that have had a worker."""
    return [(slot, table.rows[slot]) for slot in range(facts["slots"]) if table.rows[slot].starts]


def _guest(session: Any) -> Facts | None:
    """The FUSE session; None if the guest has not mounted the share."""
    if not session.ready:
        return None
    return {"minor": session.minor, "flags": session.flags, "offered": session.offered}


def _numbers(counter: Any) -> Facts:
    """The fields of a struct of numbers."""
    names = [name for name, _ in ffi.typeof(counter).fields]
    return {name: int(getattr(counter, name)) for name in names}


def _ops(rows: Iterator[Any]) -> Iterator[Facts]:
    """The counters of each opcode that a guest has used, of all workers together."""
    everything = list(rows)
    for opcode in range(lib.FUSE_OPCODE_MAX):
        used = [row.ops[opcode] for row in everything if row.ops[opcode].count]
        if used:
            name = text(_op(opcode).name) or "unknown"
            yield {"op": name, **_sum(used)}


def _op(opcode: int) -> Any:
    return lib.fuse_op(opcode)


def _worker(slot: int, row: Any) -> Facts:
    used = [op for op in row.ops if op.count]
    names = ("pid", "starts", "sleeps", "spins_ns", "offloaded")
    return {"slot": slot, **{name: getattr(row, name) for name in names}, **_sum(used)}


def _sum(ops: Sequence[Any]) -> Facts:
    """The sums over several struct op_counter."""
    names = ("count", "errors", "bytes", "ns")
    total: Facts = {name: sum(getattr(op, name) for op in ops) for name in names}
    buckets = range(lib.LATENCY_BUCKETS)
    total["latency"] = [sum(op.latency[bucket] for op in ops) for bucket in buckets]
    return total


# Processes.


def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _processes(facts: Facts) -> list[Facts]:
    """The daemon's processes, without this one."""
    pids = facts["pids"]
    found = []
    for pid in (pids["keeper"], pids["supervisor"], pids["launcher"]):
        with suppress(OSError):
            found.append(process_of(pid))
    others = [p for p in of_session(facts["session"]) if p.pid != pids["launcher"]]
    found += others[:PROCESSES_MAX]
    prefix = f"vfsd: {facts['name']} "
    return [_process(process, prefix) for process in found]


def _process(process: Process, prefix: str) -> Facts:
    title, status_lines = "", ""
    with suppress(OSError):
        title = Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace").strip("\0 ")
        status_lines = Path(f"/proc/{process.pid}/status").read_text(errors="replace")
    values = dict(line.split(":\t", 1) for line in status_lines.splitlines() if ":\t" in line)
    role = title.partition(prefix)[2] or process.name
    return {
        "pid": process.pid,
        "role": printable(role[:TITLE_MAX]),
        "state": process.state,
        "cpu_seconds": process.cpu / _TICKS,
        "uid": int(values.get("Uid", "-1").split()[0]),
        "seccomp": values.get("Seccomp", "").strip() == "2",
        "capabilities": int(values.get("CapEff", "0").strip(), 16),
    }
