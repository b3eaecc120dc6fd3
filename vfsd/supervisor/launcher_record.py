# SPDX-License-Identifier: Apache-2.0
"""What the launcher reports about itself to keeper and supervisor: a page that all of them share.

The page has pids of processes that belong to no sandbox. The launcher writes the page and never
reads it: a supervisor that was taken over could write there as well.
"""

from typing import Any, Final

from vfsd.transport.native import ffi
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.shared_memory import create_segment, map_segment

_BYTES: Final = 4096
_LAUNCHER, _DEPUTY, _TEMPLATE, _DEATHS, _LOGGED, _IS_LOST = range(6)  # words of the page


class LauncherRecord:
    """The page. Processes that are forked or cloned from its creator share it. The pid of a
    process that does not exist is 0."""

    def __init__(self) -> None:
        fd = create_segment("vfsd-launcher", _BYTES)
        try:
            self._page: Any = ffi.cast("uint32_t *", map_segment(fd, _BYTES))
        finally:
            close_fds([fd])

    @property
    def launcher(self) -> int:
        return int(self._page[_LAUNCHER])

    @property
    def deaths(self) -> int:
        """How many launchers have died."""
        return int(self._page[_DEATHS])

    def pids(self) -> set[int]:
        """The launcher, its deputy and the template, as far as they exist."""
        return {int(self._page[word]) for word in (_LAUNCHER, _DEPUTY, _TEMPLATE)} - {0}

    # Written by the launcher.

    def note_launcher(self, pid: int, deaths: int) -> None:
        """In this order: a process that reads the launcher's pid also reads the death of the
        launcher before, and at each moment this pid is that of the launcher or of the deputy."""
        self._page[_DEATHS] = deaths
        self._page[_LAUNCHER] = pid
        self._page[_DEPUTY] = 0

    def note_deputy(self, pid: int) -> None:
        self._page[_DEPUTY] = pid

    def note_template(self, pid: int) -> None:
        self._page[_TEMPLATE] = pid

    # Written by the supervisor.

    def take_unlogged(self) -> int:
        """The number of deaths that no supervisor has logged yet."""
        unlogged = self.deaths - int(self._page[_LOGGED])
        self._page[_LOGGED] = self.deaths
        return unlogged

    def note_lost(self) -> bool:
        """No process is left that could start pools; False if a supervisor has noted that."""
        is_new = not self._page[_IS_LOST]
        self._page[_IS_LOST] = 1
        return is_new
