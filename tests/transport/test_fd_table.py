# SPDX-License-Identifier: Apache-2.0
"""Closing all fds except for a given set."""

import os

import pytest

from vfsd.transport.fd_table import close_all_but


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kept", [(), (0,), (0, 1, 2), (1, 5), (7, 8), (0, 9)], ids=str)
def test_what_is_kept_is_all_that_is_open(kept: tuple[int, ...]) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for fd in range(10):
                if not is_open(fd):
                    os.dup2(0, fd)
            close_all_but(kept)
            status = 0 if {fd for fd in range(10) if is_open(fd)} == set(kept) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
