# SPDX-License-Identifier: Apache-2.0
"""What the supervisor knows of its share, for the process that answers operators."""

import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vfsd import __version__
from vfsd.supervisor.backend import Backend
from vfsd.supervisor.boot import Boot
from vfsd.supervisor.effects import Device
from vfsd.supervisor.log_collector import RecentLine
from vfsd.transport.option_types import POLL_AUTO

WARNINGS: Final = 10  # of the latest warnings and errors
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
        "pids": {"keeper": keeper, "supervisor": os.getpid(), "launcher": boot.launcher.pid},
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
        "warnings": [line.encode() for line in _warnings(boot)],
    }


def tables(view: View) -> list[int]:
    """New fds of the tables of workers, inodes and files, which cannot be used to write to them;
    empty if there is no pool. The caller owns the fds."""
    if view.backend is None:
        return []
    segments = view.backend.pool.segments
    flags = os.O_RDONLY | os.O_CLOEXEC
    return [
        os.open(f"/proc/self/fd/{fd}", flags)
        for fd in (segments.workers, segments.inodes, segments.files)
    ]


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


def _warnings(boot: Boot) -> list[RecentLine]:
    return [line for line in boot.log.recent if line.level in ("error", "warn")][-WARNINGS:]
