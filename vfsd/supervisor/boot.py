# SPDX-License-Identifier: Apache-2.0
"""What the keeper has made before there is a supervisor, for each supervisor."""

from collections.abc import Callable
from dataclasses import dataclass

from vfsd.supervisor.device import DeviceSegment
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.listener import Listener
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.options import Options
from vfsd.supervisor.resume import Outbox, StateFile


@dataclass(frozen=True)
class Boot:
    """What exists before the first supervisor does, and outlives each of them."""

    name: str
    options: Options
    launcher: Launcher
    listener: Listener
    state: StateFile
    outbox: Outbox
    device: DeviceSegment
    kept_fds: frozenset[int]  # open in the keeper
    log: LogCollector
    tell_ready: Callable[[], None]  # once a VMM can connect, or more often
