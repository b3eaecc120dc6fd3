# SPDX-License-Identifier: Apache-2.0
"""The supervisor process, from its confinement to its exit status."""

from typing import Final

from vfsd.supervisor.boot import Boot
from vfsd.supervisor.confinement import confine_supervisor
from vfsd.supervisor.event_loop import StopError
from vfsd.supervisor.service import EndedError, Service
from vfsd.transport.errors import OperatorError, describe

STATUS_CRASHED: Final = 70  # EX_SOFTWARE: the keeper creates the next supervisor


def supervise(boot: Boot, keeper: int, is_successor: bool) -> int:
    """Run as the supervisor; returns the exit status of the program."""
    confine_supervisor(boot.options.seccomp)
    service = Service(boot, keeper)
    try:
        status = service.run(is_successor)
    except StopError:
        status = 0
    except EndedError as ended:
        status = ended.status
    except OperatorError as error:
        boot.log.write("error", str(error))
        status = error.status
    except Exception as error:
        # An error of ours: leave everything as it is, so that the next supervisor can go on.
        boot.log.write("error", f"the supervisor failed: {describe(error)}")
        return STATUS_CRASHED
    service.end(status)
    return status
