# SPDX-License-Identifier: Apache-2.0
"""The signals that the keeper waits for."""

import signal
from typing import Final

from vfsd.transport.ending_signals import ENDING

READY: Final = signal.SIGUSR1  # a supervisor sends it when a VMM can connect
WATCHED: Final = (*ENDING, signal.SIGCHLD, READY)


def hold_signals() -> None:
    """Block the signals until keep() waits for them, so that a signal which ends the daemon does
    not end it before it can clean up."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
