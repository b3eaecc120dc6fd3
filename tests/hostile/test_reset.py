# SPDX-License-Identifier: Apache-2.0
"""A guest that is reset loses its open files and locks; a guest that is paused keeps them."""

import fcntl
import os

import pytest

from tests.waiting import LOADED

from . import driver
from .conftest import Folder
from .daemon import Daemon, wait_until
from .fuse import ROOT, Guest, Op
from .test_ops_files import F_WRLCK, expect_success, lock


def is_locked(fd: int) -> bool:
    """Does another process hold a lock of either kind on the file?"""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(fd, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("flock", [True, False])
def test_a_reset_releases_the_locks_of_the_guest(
    daemon: Daemon, guest: Guest, folder: Folder, flock: bool
) -> None:
    """Other guests and the host can take the locks at once: they need not wait until the guest
    mounts the share again."""
    frontend = guest.frontend
    log = len(daemon.log.read_text())
    entry, fh = guest.create(folder.nodeid, b"locked")
    expect_success(lock(guest, Op.SETLK, entry.nodeid, fh, 1, F_WRLCK, flock=flock))
    fd = os.open(folder.path / "locked", os.O_RDWR)
    assert is_locked(fd)
    for _ in range(3):  # the messages that QEMU sends
        frontend.tell(driver.RESET_DEVICE)
    wait_until(lambda: not is_locked(fd), 5 * LOADED, "the lock is released")
    os.close(fd)
    for ring in frontend.rings.values():
        ring.clear()
        frontend.start_ring(ring)
    guest.init()
    guest.lookup(ROOT, folder.name)
    wait_until(lambda: "mounted the share again: FUSE 7." in daemon.log.read_text()[log:])
    said = daemon.log.read_text()[log:]
    assert said.count("the guest has reset the device") == 1
    assert "mounted the share: " not in said, "the log has the agreed features already"


def test_a_pause_keeps_what_the_guest_has_open(guest: Guest, folder: Folder) -> None:
    """After QEMU's `stop` and `cont`, which stop the vrings and start them again and do nothing
    else."""
    frontend = guest.frontend
    entry, fh = guest.create(folder.nodeid, b"open")
    guest.write(entry.nodeid, fh, 0, b"content")
    expect_success(lock(guest, Op.SETLK, entry.nodeid, fh, 1, F_WRLCK, flock=True))
    for index in frontend.rings:
        frontend.stop_ring(index)
    fd = os.open(folder.path / "open", os.O_RDWR)
    assert is_locked(fd)
    os.close(fd)
    for ring in frontend.rings.values():
        ring.clear()
        frontend.start_ring(ring)
    assert guest.read(entry.nodeid, fh, 0, 7) == b"content"
    guest.release(entry.nodeid, fh)
