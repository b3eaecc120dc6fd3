# SPDX-License-Identifier: Apache-2.0
"""Killing all processes of a daemon, of which each one replaces others that die."""

from contextlib import suppress

import psutil

from tests.waiting import HANG


def kill_family(pid: int) -> None:
    """Kill a process and all of its descendants, and wait for the end of the descendants. All of
    them are stopped first, so that none replaces another."""
    ancestor = psutil.Process(pid)
    family: list[psutil.Process] = []
    while new := [p for p in (ancestor, *ancestor.children(recursive=True)) if p not in family]:
        family += new
        for member in new:
            with suppress(psutil.NoSuchProcess):
                member.suspend()
    for member in family:
        with suppress(psutil.NoSuchProcess):  # a worker dies with its sandbox
            member.kill()
    assert not psutil.wait_procs(family[1:], HANG)[1]
