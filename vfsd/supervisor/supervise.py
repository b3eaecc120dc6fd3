# SPDX-License-Identifier: Apache-2.0
"""The supervisor process, from its beginning to its exit status."""

import os
from collections.abc import Callable
from typing import Final

from vfsd.supervisor.boot import Boot
from vfsd.supervisor.clones import Role
from vfsd.supervisor.event_loop import StopError
from vfsd.supervisor.keeper import STATUS_CRASHED
from vfsd.supervisor.keeper_watch import KeeperWatch
from vfsd.supervisor.saved_state import SavedState
from vfsd.supervisor.takeover import NotNeededError
from vfsd.supervisor.upgradable_service import UpgradableService
from vfsd.supervisor.upgrade import HandedOverError
from vfsd.transport.errors import OperatorError, describe

TRIES: Final = 8  # supervisors that may die before a VM that an earlier daemon has left is given up


def supervise(
    boot: Boot, keeper: int, next_keeper: Callable[[int], Role], is_successor: bool
) -> int:
    """Run as the supervisor; returns the exit status of the program. `keeper`: the pid of the
    keeper; `next_keeper`: see KeeperWatch."""
    _count_try(boot)
    service = UpgradableService(boot, KeeperWatch(boot, keeper, next_keeper))
    try:
        status = service.run(is_successor)
    except StopError:
        if service.leave_vm():
            return 0
        status = 0
    except (HandedOverError, NotNeededError):
        status = 0
    except OperatorError as error:
        boot.log.write("error", str(error))
        status = error.status
    except Exception as error:
        # An error of ours: leave everything as it is, so that the next supervisor can go on.
        boot.log.write("error", f"the supervisor failed: {describe(error)}")
        if boot.state.tries():
            _give_up_vm(boot)
        return STATUS_CRASHED
    service.end(status)
    return status


def _count_try(boot: Boot) -> None:
    """A signal ends a supervisor without a word, so supervisors that try to serve a VM of an
    earlier daemon are counted."""
    tries = boot.state.tries()
    if tries > TRIES:
        _give_up_vm(boot)
    elif tries:
        boot.state.note_taken(tries + 1)


def _give_up_vm(boot: Boot) -> None:
    """Leave no VM to the next supervisor. Nothing else would end the failures, since the state of
    a VM that an earlier daemon had served outlives every restart of the service."""
    boot.log.write("warn", "the VM that an earlier daemon has left is given up")
    frontend = boot.state.load()[0].frontend
    boot.save(SavedState())
    boot.state.note_taken(0)
    if frontend is not None:
        os.close(frontend)  # the next supervisor would take it for a VMM that has just connected
