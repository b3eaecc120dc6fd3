# SPDX-License-Identifier: Apache-2.0
"""The control process, from its beginning as a clone of the supervisor to its end."""

import os
import signal
from typing import NoReturn

from vfsd.supervisor.boot import Boot
from vfsd.supervisor.control_server import ControlServer, HungUpError
from vfsd.supervisor.resume import sweep
from vfsd.transport.ending_signals import ENDING
from vfsd.transport.errors import describe
from vfsd.transport.fd_channel import FdChannel
from vfsd.transport.native import check, lib
from vfsd.transport.process_title import setproctitle


class ControlProcess:
    """What the clone needs of its supervisor, whose pid is `supervisor`."""

    def __init__(self, boot: Boot, channel: FdChannel, supervisor: int) -> None:
        self._boot = boot
        self._channel = channel
        self._supervisor = supervisor

    def run(self) -> NoReturn:
        """Answer operators, and exit. The signals are blocked at first."""
        status = 1
        try:
            self._part()
            assert self._boot.control
            ControlServer(self._boot.control, self._channel).run()
            status = 0
        except HungUpError:
            status = 0
        except BaseException as error:
            os.write(2, f"vfsd: {self._boot.name}: control: {describe(error)}\n".encode())
        finally:
            os._exit(status)

    def _part(self) -> None:
        """Give up what the supervisor has, and end with the supervisor."""
        signal.set_wakeup_fd(-1)
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        check(lib.process_watch_parent(signal.SIGKILL))
        if os.getppid() != self._supervisor:
            os._exit(0)
        setproctitle(f"vfsd: {self._boot.name} control")
        assert self._boot.control
        sweep({0, 1, 2, self._boot.control.socket.fileno(), self._channel.fileno()})
        self._boot.device.close()
        self._boot.state.close()
        self._boot.launcher.record.close()
