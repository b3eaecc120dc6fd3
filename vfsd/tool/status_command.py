# SPDX-License-Identifier: Apache-2.0
"""`vfsd status`: what a daemon is doing."""

import argparse
import textwrap
import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final

from vfsd.control.instances import Instance
from vfsd.control.model import Queue, Status
from vfsd.tool import instance_options as common
from vfsd.tool.list_command import user_name
from vfsd.tool.process_facts import name_of, process_rows
from vfsd.transport.fuse_features import names_of

SUMMARY: Final = "show what a daemon is doing: share, guest, queues, processes, protections"
WIDTH: Final = 80
INDENT: Final = 14


def add_options(parser: argparse.ArgumentParser) -> None:
    common.add_common(parser)
    common.add_json(parser)
    common.add_optional_instance(parser)


def run(options: argparse.Namespace) -> int:
    instance = common.chosen(options)
    with common.connected(options, instance) as client:
        status = client.status()
    processes = process_rows(status)
    if options.json:
        common.print_json(common.as_json(status) | _more(status, instance, processes))
    else:
        print(*lines(status, processes), sep="\n")
    return 0


def _more(status: Status, instance: Instance, processes: list[dict[str, Any]]) -> dict[str, Any]:
    guest = status.guest
    return {
        "instance": common.as_json(instance),
        "processes": processes,
        "features": names_of(guest.flags) if guest else [],
        "not_agreed": names_of(guest.offered & ~guest.flags) if guest else [],
    }


def lines(status: Status, processes: list[dict[str, Any]]) -> Iterator[str]:
    """The report for people."""
    yield f"{status.name}: {status.share}"
    for head, text in _facts(status):
        first, rest = f"  {head}".ljust(INDENT), " " * INDENT
        yield from textwrap.wrap(
            text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False
        )
    yield ""
    heads = ("PID", "USER", "STATE", "CPU", "PSS", "FDS", "FILTER", "CAPS", "PROCESS")
    yield from common.columns([heads, *map(_row, processes)], 0)


def _facts(status: Status) -> Iterator[tuple[str, str]]:
    uptime = duration(time.time() - status.started)
    yield "daemon", f"virtiofsd {status.version}, for {uptime}"
    yield "socket", status.socket or "an inherited fd"
    yield "VMM", _vmm(status)
    yield from _guest(status)
    yield "queues", _queues(status) or "none runs"
    yield "files", f"{status.inodes} known of at most {status.inode_limit}, {status.files} open"
    settings, guard = status.settings, status.protections
    yield (
        "settings",
        (
            f"log level {settings.log_level}, poll-us {settings.poll_us}, cache {settings.cache},"
            f" thread pool of {settings.thread_pool_size}"
        ),
    )
    yield (
        "protections",
        ", ".join(
            [
                f"sandbox {guard.sandbox}",
                f"seccomp {guard.seccomp}",
                f"file handles {guard.inode_file_handles}",
                *(["user namespace"] if guard.userns else []),
                *(["read-only"] if guard.readonly else []),
            ]
        ),
    )
    yield "restarts", _restarts(status)
    if status.warnings:
        last = status.warnings[-1]
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last.time))
        source = f"{last.source}: " if last.source else ""
        yield f"last {last.level}", f"{at}  {source}{last.text}"


def _vmm(status: Status) -> str:
    if status.vmm is None:
        return "none is connected"
    return f"{name_of(status.vmm.pid)} (pid {status.vmm.pid}, user {user_name(status.vmm.uid)})"


def _guest(status: Status) -> Iterator[tuple[str, str]]:
    guest = status.guest
    if guest is None:
        yield "guest", "has not mounted the share"
        return
    yield "guest", f"FUSE 7.{guest.minor}: {' '.join(names_of(guest.flags))}"
    if refused := names_of(guest.offered & ~guest.flags):
        yield "not agreed", " ".join(refused)


def _queues(status: Status) -> str:
    def slot(queue: Queue) -> int:
        return queue.slot

    return "; ".join(
        f"worker {number}: {', '.join(map(_queue, queues))}"
        for number, queues in groupby(sorted(status.queues, key=slot), slot)
    )


def _queue(queue: Queue) -> str:
    name = f"queue {queue.index}" if queue.index else "hiprio"
    return f"{name} ({queue.size} entries)"


def _restarts(status: Status) -> str:
    workers = sum(max(0, worker.starts - 1) for worker in status.workers)
    text = (
        f"supervisor {status.restarts.supervisor}, sandbox {status.restarts.sandbox},"
        f" workers {workers}"
    )
    if status.ended:
        text += f"; not created again: worker {', '.join(map(str, status.ended))}"
    return text


def _row(process: dict[str, Any]) -> tuple[str, ...]:
    pss, fds = process["pss_kib"], process["fds"]
    return (
        str(process["pid"]),
        user_name(process["uid"]),
        process["state"],
        f"{process['cpu_seconds']:.2f} s",
        "?" if pss is None else f"{pss / 1024:.1f} MiB",
        "?" if fds is None else str(fds),
        "yes" if process["seccomp"] else "no",
        str(process["capabilities"].bit_count()),
        process["role"],
    )


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2])
