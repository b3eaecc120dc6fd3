# SPDX-License-Identifier: Apache-2.0
"""What the supervisor knows of its share, for the process that answers operators."""

import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vfsd import __version__
from vfsd.supervisor.backend import Backend
from vfsd.supervisor.boot import Boot
from vfsd.supervisor.effects import Device
from vfsd.supervisor.log_collector import RecentLine
from vfsd.transport.control_messages import encode_object
from vfsd.transport.errors import OperatorError
from vfsd.transport.option_types import POLL_AUTO
from vfsd.transport.passed_fds import close_fds

WARNINGS: Final = 10  # of the latest warnings and errors
WARNINGS_BYTES: Final = 8192  # of a packet, which has 64 KiB for everything; paths may take most
TEXT_MAX: Final = 500  # characters of a warning
_PEER: Final = struct.Struct("=iII")  # struct ucred


@dataclass(frozen=True)
class View:
    """What the service has at the moment. `frontend`: the fd of the VMM's connection."""

    backend: Backend | None
    frontend: int | None
    device: Device


def facts(boot: Boot, view: View, keeper: int) -> dict[str, Any]:
    """The facts, as values that JSON can represent."""
    options = boot.options
    return {
        "name": boot.name,
        "version": __version__,
        "started": boot.control_record.started,
        "share": options.shared_dir,
        "socket": boot.listener.path,
        "pids": {
            "keeper": keeper,
            "supervisor": os.getpid(),
            "launcher": boot.launcher.record.launcher,
        },
        "session": boot.launcher.session,
        "vmm": _vmm(view.frontend),
        "settings": {
            "log_level": boot.log.level,
            "poll_us": "auto" if options.poll_us == POLL_AUTO else options.poll_us,
            "cache": options.cache,
            "thread_pool_size": options.thread_pool_size,
        },
        "protections": {
            "sandbox": options.sandbox,
            "seccomp": options.seccomp,
            "userns": options.userns,
            "readonly": options.readonly,
            "inode_file_handles": options.inode_file_handles,
        },
        "slots": options.workers,
        "inode_limit": options.inode_limit,
        "queues": _queues(view),
        "ended": sorted(view.backend.pool.ended) if view.backend else [],
        "restarts": {
            "supervisor": boot.control_record.supervisors - 1,
            "sandbox": boot.control_record.lost,
        },
        "warnings": _warnings(boot.log.recent),
    }


def latest(lines: Sequence[RecentLine], room: int) -> list[dict[str, Any]]:
    """The latest lines that fit into `room` bytes as JSON, as values that JSON can represent."""
    found: list[dict[str, Any]] = []
    for line in reversed(lines):
        content = line.encode()
        room -= len(encode_object(content)) + 1
        if room < 0:
            break
        found.insert(0, content)
    return found


def tables(view: View) -> list[int]:
    """New fds of the tables of workers, inodes and files, which cannot be used to write to them;
    empty if there is no pool. The caller owns the fds."""
    if view.backend is None:
        return []
    segments = view.backend.pool.segments
    opened: list[int] = []
    try:
        # After an error the list has those that were opened before it.
        opened.extend(
            os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            for fd in (segments.workers, segments.inodes, segments.files)
        )
    except OSError as error:
        close_fds(opened)
        raise OperatorError(f"the tables cannot be opened: {error.strerror}") from None
    return opened


def _vmm(frontend: int | None) -> Mapping[str, int] | None:
    """The process at the other end of the connection."""
    if frontend is None:
        return None
    sock = socket.socket(fileno=frontend)
    try:
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    finally:
        sock.detach()
    pid, uid, _ = _PEER.unpack(peer)
    return {"pid": pid, "uid": uid}


def _queues(view: View) -> list[dict[str, int]]:
    if view.backend is None:
        return []
    return [
        {"index": vring.index, "size": vring.size, "slot": view.backend.slot_of(vring.index)}
        for vring in view.device.vrings
    ]


def _warnings(recent: Iterable[RecentLine]) -> list[dict[str, Any]]:
    urgent = [line for line in recent if line.level in ("error", "warn")]
    cut = [line._replace(text=line.text[:TEXT_MAX]) for line in urgent[-WARNINGS:]]
    return latest(cut, WARNINGS_BYTES)
