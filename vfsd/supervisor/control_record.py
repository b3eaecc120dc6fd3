# SPDX-License-Identifier: Apache-2.0
"""What an operator has set, and what supervisors count: kept while supervisors come and go.

The record is in a segment that keeper and supervisor hold. Each value is written by one small call
of pwrite(2), so a supervisor that dies leaves the old value or the new value.
"""

import os
import struct
import time
from typing import Final

from vfsd.transport.control_messages import LOG_THRESHOLDS
from vfsd.transport.shared_memory import create_segment

_LEVEL: Final = struct.Struct("=B")
_COUNT: Final = struct.Struct("=Q")
_TIME: Final = struct.Struct("=d")
_LEVEL_AT: Final = 0
_SUPERVISORS_AT: Final = 8
_LOST_AT: Final = 16
_STARTED_AT: Final = 24
BYTES: Final = 32


class ControlRecord:
    """The segment, which stays open as long as the daemon lives."""

    def __init__(self, log_level: str) -> None:
        self.fd = create_segment("vfsd-control", BYTES)
        self.set_log_level(log_level)
        os.pwrite(self.fd, _TIME.pack(time.time()), _STARTED_AT)

    @property
    def log_level(self) -> str:
        (index,) = _LEVEL.unpack(os.pread(self.fd, _LEVEL.size, _LEVEL_AT))
        return LOG_THRESHOLDS[index]

    def set_log_level(self, level: str) -> None:
        """ValueError if there is no such level."""
        os.pwrite(self.fd, _LEVEL.pack(LOG_THRESHOLDS.index(level)), _LEVEL_AT)

    @property
    def started(self) -> float:
        """When the daemon was started, in seconds since 1970."""
        return float(_TIME.unpack(os.pread(self.fd, _TIME.size, _STARTED_AT))[0])

    @property
    def supervisors(self) -> int:
        """The number of supervisors up to now."""
        return self._count(_SUPERVISORS_AT)

    @property
    def lost(self) -> int:
        """The number of pools that died and were replaced."""
        return self._count(_LOST_AT)

    def note_supervisor(self) -> None:
        self._add(_SUPERVISORS_AT)

    def note_lost(self) -> None:
        self._add(_LOST_AT)

    def _count(self, at: int) -> int:
        return int(_COUNT.unpack(os.pread(self.fd, _COUNT.size, at))[0])

    def _add(self, at: int) -> None:
        os.pwrite(self.fd, _COUNT.pack(self._count(at) + 1), at)
