# SPDX-License-Identifier: Apache-2.0
"""A service that can hand its share over to another version, and take over from one.

upgrade.py has the protocol. Between two messages of the VMM this service carries out the upgrade
that an operator asks for. In a daemon that was started for an upgrade (heir.py) it begins with the
VM of the version that serves.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import replace

from vfsd.supervisor.backend import Backend
from vfsd.supervisor.bequest_orders import resume
from vfsd.supervisor.boot import Boot
from vfsd.supervisor.effects import Apply, Effect
from vfsd.supervisor.fd_store import RECENT
from vfsd.supervisor.keeper_watch import KeeperWatch
from vfsd.supervisor.kept_vm import OUTBOX, STATE
from vfsd.supervisor.pool_errors import PoolDiedError
from vfsd.supervisor.saved_state import SavedMessage, SavedState
from vfsd.supervisor.service import Service
from vfsd.supervisor.session import Session
from vfsd.supervisor.takeover import NotNeededError, Takeover
from vfsd.supervisor.upgrade import Upgrade, Vm
from vfsd.transport.errors import OperatorError
from vfsd.transport.message_socket import MessageSocket


class UpgradableService(Service):
    def __init__(self, boot: Boot, keeper: KeeperWatch) -> None:
        super().__init__(boot, keeper)
        self._heir: int | None = None  # a socket: see SavedState
        self._former: int | None = None
        self._upgrade = Upgrade(boot, self._loop, self._note_heir)

    def _take_over(self) -> list[Effect]:
        saved, _ = self._boot.state.load()
        self._heir, self._former = saved.heir, saved.former
        if self._boot.store and saved.has_had_pool and saved.former is None:
            self._boot.store.is_idle = False  # it was, when the keeper of a new version began
        return super()._take_over()

    def _state(self, effects: Sequence[Effect], message: SavedMessage | None) -> SavedState:
        state = super()._state(effects, message)
        return replace(state, heir=self._heir, former=self._former)

    def _disturbed(self, why: Exception) -> None:
        self._upgrade.give_up(str(why))

    def _await_readable(self, fd: int) -> None:
        """Wait, and carry out an upgrade while that takes."""
        while not self._loop.wait_readable(fd, self._upgrade.is_due):
            self._upgrade.advance(self._vm())

    def _vm(self) -> Vm | None:
        if self._frontend is None or self._backend is None:
            return None
        frontend = self._frontend.fileno()
        return Vm(self._backend.pool, self._session, frontend, self._has_spoken)

    def _note_heir(self, heir: int | None, ended: int | None) -> None:
        self._heir, self._ended = heir, ended
        self._save()

    def _settle(self, effects: list[Effect], is_successor: bool) -> list[Effect]:
        """Go on with an upgrade in which another supervisor died, or in which this daemon takes the
        place of another daemon; returns the effects to carry out."""
        if self._heir is not None:
            self._upgrade.go_on(self._heir)
        takeover = self._boot.takeover
        if takeover and not self._has_had_pool:
            if is_successor:
                raise NotNeededError
            try:
                self._take_place(takeover)
            except (OperatorError, PoolDiedError, OSError) as error:
                takeover.fail(str(error))
                raise NotNeededError from None
        if takeover and self._former is not None:
            effects = self._replace(takeover)
        elif self._backend and is_successor:
            resume(self._backend.pool)
        self._upgrade.start()
        return effects

    def _take_place(self, takeover: Takeover) -> None:
        """Have everything ready, and take the VM of the other version."""
        self._log.set_level(takeover.log_level)
        former = takeover.former()
        self._backend = Backend.start(self._context(), former=former)
        if not former:
            takeover.report_prepared()
        if vm := takeover.receive_vm():
            self._frontend = MessageSocket(socket.socket(fileno=vm.frontend))
            self._session = Session.restore(vm.session)
            self._has_spoken = vm.has_spoken
            self._backend.pool.ended = set(vm.ended)
            self._backend.pool.spawned = set(vm.ended)
        self._has_had_pool, self._former = True, takeover.socket
        self._save()

    def _replace(self, takeover: Takeover) -> list[Effect]:
        """Serve from now on; returns the effects to carry out, none if no VM is connected."""
        names, label = takeover.await_go()
        if self._boot.store:
            self._boot.state.skip_labels(label + RECENT)  # it may give a few more labels
            state, outbox = self._boot.state.fd, self._boot.outbox.fd
            self._boot.store.take_over(names, {STATE: state, OUTBOX: outbox})
        self._keeper.take_files()
        self._former = None
        self._applied = self._session.device
        self._left = [Apply()] if self._frontend else []
        self._save(self._left)
        os.close(takeover.socket)
        return self._left
