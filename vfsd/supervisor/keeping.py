# SPDX-License-Identifier: Apache-2.0
"""--keep-state: the place where the VM's fds are kept, and what an earlier daemon left there."""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from vfsd.supervisor.fd_store import SYSTEMD, FdStore
from vfsd.supervisor.kept_vm import OUTBOX, STATE, Kept, KeptVm
from vfsd.supervisor.log_collector import Say
from vfsd.supervisor.options import Options
from vfsd.supervisor.resume import Outbox, StateFile
from vfsd.supervisor.state_holder import hold, notify_address
from vfsd.supervisor.systemd import ServiceManager


@dataclass(frozen=True)
class Keeping:
    """The place where fds are kept. `daemon`: as long as it is open, a state holder knows that we
    live. `vm`: the VM to go on with. `stale`: names of fds there that nothing needs any more."""

    manager: ServiceManager
    daemon: socket.socket | None
    vm: KeptVm | None
    stale: Sequence[str]
    is_heir: bool = False  # another daemon serves still, whose place this one is to take

    @classmethod
    def start(
        cls, name: str, options: Options, give_up: Callable[[Say], None], kept: Kept
    ) -> "Keeping":
        """Reach systemd, or the state holder, which is started if there is none. `give_up`: what
        gives up the privileges of a process."""
        place = options.keep_state
        if place == SYSTEMD:
            return cls(ServiceManager.of_environment(), None, kept.vm, kept.stale)
        confine = partial(give_up, partial(_say, name))
        daemon = hold(place, confine, f"vfsd: {name} state")
        return cls(ServiceManager(notify_address(place)), daemon, kept.vm, kept.stale)

    @property
    def note(self) -> tuple[str, str] | None:
        """Level and text of a line for the log."""
        if self.vm:
            return "info", "goes on with the VM that an earlier daemon has left"
        if set(self.stale) - {STATE, OUTBOX}:
            text = "the VM that an earlier daemon has left cannot be taken up; its connection ends"
            return "warn", text
        return None

    def store(self, state: StateFile, outbox: Outbox) -> FdStore:
        """The store for the fds of the VM. It has `state` and `outbox` from here on."""
        if self.is_heir:
            store = FdStore(self.manager, state.next_label)
            store.is_idle = True
            return store
        for name in self.stale:
            self.manager.remove_fd(name)
        self.manager.store_fd(STATE, state.fd)  # no effect if the file is there already
        self.manager.store_fd(OUTBOX, outbox.fd)
        return FdStore(self.manager, state.next_label)


def _say(name: str, level: str, text: str) -> None:
    """Write a line of the state holder, which has no log, while it starts."""
    os.write(2, f"vfsd: {name}: state holder: {level}: {text}\n".encode())
