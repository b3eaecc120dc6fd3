# SPDX-License-Identifier: Apache-2.0
"""The titles of the processes, by which an operator finds them in ps."""

import pytest

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import Guest

QUEUES = 8
LONG = (
    "vm-" + 74 * "n"
)  # a path in /tmp with this name is as long as the address of a socket may be
WIDE = "vm-" + 20 * "\N{SNOWMAN}"
ROLES = ("keeper", "launcher", "supervisor", "holder", "pool")


@pytest.mark.parametrize("name", ["a", LONG, WIDE])
def test_every_process_has_its_title(name: str) -> None:
    """The longest title is that of a worker that serves all queues."""
    with Daemon("--workers=1", name=name) as daemon, Frontend(daemon.socket) as frontend:
        Guest(frontend.setup(QUEUES)).init()
        queues = ", ".join(["hiprio", *(f"queue {number}" for number in range(1, QUEUES + 1))])
        for role in (*ROLES, f"worker 0 ({queues})"):
            wait_until(lambda: daemon.titled(f"vfsd: {name} {role}"), what=role)  # noqa: B023
