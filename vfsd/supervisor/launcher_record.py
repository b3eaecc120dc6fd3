# SPDX-License-Identifier: Apache-2.0
"""What the launcher reports about itself to keeper and supervisor: a page that all of them share.

The page has pids of processes that belong to no sandbox. The launcher writes the page and never
reads it: a supervisor that was taken over could write there as well.
"""

from typing import Any

from vfsd.transport.native import ffi
from vfsd.transport.passed_fds import close_fds
from vfsd.transport.shared_memory import create_segment, map_segment, unmap_segment

_BYTES = 4096


class LauncherRecord:
    """The page. Processes that are forked or cloned from its creator share it."""

    def __init__(self) -> None:
        fd = create_segment("vfsd-launcher", _BYTES)
        try:
            self._addr = map_segment(fd, _BYTES)
        finally:
            close_fds([fd])
        self._page: Any = ffi.cast("uint32_t *", self._addr)

    def close(self) -> None:
        """Unmap the page, in a process that has no use for it."""
        unmap_segment(self._addr, _BYTES)

    @property
    def template(self) -> int:
        """The pid of the template of pools; 0: there is none."""
        return int(self._page[0])

    def note_template(self, pid: int) -> None:
        self._page[0] = pid
