# SPDX-License-Identifier: Apache-2.0
"""A daemon with a guest that an operator looks at, and the operator's tool."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.hostile.daemon import Daemon
from tests.hostile.driver import Frontend
from tests.hostile.fuse import Guest
from tests.waiting import HANG
from vfsd.control.client import Client
from vfsd.control.instances import Instance, instance_of

VFSD = str(Path(sys.executable).parent / "vfsd")
# A shell has programs that it starts in the background ignore SIGINT, also these tests.
ENDED_BY_SIGINT = ("env", "--default-signal=INT")


@dataclass(frozen=True)
class Operated:
    """A daemon, a guest that has mounted its share, and how an operator reaches the daemon."""

    daemon: Daemon
    guest: Guest

    @property
    def name(self) -> str:
        """The pid of the keeper: another daemon of this host may have the same name."""
        return str(self.daemon.process.pid)

    @property
    def instance(self) -> Instance:
        return instance_of(self.name)

    def client(self, timeout: float = HANG) -> Client:
        return Client(self.instance, timeout)

    def tool(self, *words: str) -> str:
        """What a command of the tool writes."""
        return run_tool(*words).stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.tool(*words, "--json"))


def run_tool(*words: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run([VFSD, *words], capture_output=True, text=True, check=False, timeout=HANG)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture
def operated() -> Iterator[Operated]:
    require("root")
    with Daemon("--workers=2") as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(2))
        guest.init()
        yield Operated(daemon, guest)
