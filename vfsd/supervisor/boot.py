# SPDX-License-Identifier: Apache-2.0
"""The objects that the keeper makes before it creates the first supervisor."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vfsd.supervisor.control_record import ControlRecord
from vfsd.supervisor.control_socket import ControlSocket
from vfsd.supervisor.device import DeviceSegment
from vfsd.supervisor.fd_store import FdStore
from vfsd.supervisor.launcher import Launcher
from vfsd.supervisor.listener import Listener
from vfsd.supervisor.log_collector import LogCollector
from vfsd.supervisor.options import Options
from vfsd.supervisor.resume import Outbox, StateFile
from vfsd.supervisor.saved_state import SavedState

if TYPE_CHECKING:
    from vfsd.supervisor.takeover import Takeover


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
    holder: int | None  # with --keep-state=DIR: a connection that ends with the state holder
    device: DeviceSegment
    kept_fds: frozenset[int]  # fds that outlive each keeper and each supervisor
    log: LogCollector
    control: ControlSocket | None  # None if no socket could be made
    control_record: ControlRecord
    report_ready: Callable[[], None]  # to be called each time that a VMM can connect
    takeover: "Takeover | None" = None  # of the place of a daemon that serves

    def save(self, state: SavedState) -> None:
        """Save a state, and with --keep-state the fds of this state; see fd_store.py."""
        if self.store is None:
            self.state.save(state)
            return
        fds = state.kept_fds()
        self.store.hold(fds)
        self.state.save(replace(state, labels=self.store.labels))
        self.store.release(fds)
