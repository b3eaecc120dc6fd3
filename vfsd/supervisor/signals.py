# SPDX-License-Identifier: Apache-2.0
"""The signals that the keeper waits for."""

import signal
from typing import Final

from vfsd.transport.ending_signals import ENDING

READY: Final = signal.SIGUSR1  # from a supervisor that can be connected to
WATCHED: Final = (*ENDING, signal.SIGCHLD, READY)


def hold_signals() -> None:
    """Let signals wait for keep(), so that whatever they end is put in order first."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
