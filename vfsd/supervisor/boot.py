# SPDX-License-Identifier: Apache-2.0
"""The objects that the keeper makes before it creates the first supervisor."""

from collections.abc import Callable
from dataclasses import dataclass

from vfsd.supervisor.device import DeviceSegment
from vfsd.supervisor.fd_store import FdStore
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.listener import Listener
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.options import Options
from vfsd.supervisor.resume import Outbox, StateFile


@dataclass(frozen=True)
class Boot:
    """What exists before the first supervisor, and outlives every supervisor."""

    name: str
    options: Options
    launcher: Launcher
    listener: Listener
    state: StateFile
    outbox: Outbox
    store: FdStore | None  # with --keep-state
    device: DeviceSegment
    kept_fds: frozenset[int]  # fds that are open in the keeper, which a supervisor must not close
    log: LogCollector
    report_ready: Callable[[], None]  # called each time that a VMM can connect
