# SPDX-License-Identifier: Apache-2.0
"""What a supervisor finds in its fd table when it takes over from another supervisor."""

from vfsd.supervisor.boot import Boot
from vfsd.supervisor.resume import open_fds, sweep
from vfsd.supervisor.saved_state import SavedState


def sweep_after(boot: Boot, saved: SavedState) -> int | None:
    """Close the fds that the other supervisor had open and did not save. Returns the fd of a
    connection that it had accepted and not saved, or None."""
    keep = {0, 1, 2, *boot.kept_fds, *saved.fds()}
    accepted = None
    if saved.frontend is None:
        accepted = boot.listener.accepted(open_fds() - keep)
    if accepted is not None:
        keep.add(accepted)
    orphans = sweep(keep)
    text = f"took over from a supervisor that died; closed {len(orphans)} fds that it left open"
    boot.log.write("warn", text)
    return accepted
