# SPDX-License-Identifier: Apache-2.0
"""A share mounted by `vfsd mount`, served by each back-end in turn."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from guest import daemon

from tests.conftest import require

from .mounted import Mounted

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass(frozen=True)
class Backend:
    """One back-end that `vfsd mount` connects to."""

    name: str  # as daemon.command() takes it
    queues: int
    options: tuple[str, ...] = ()


BACKENDS = {
    "1-queue": Backend("", 1),
    "4-queues": Backend("", 4),
    "userns": Backend("", 4, ("--userns",)),
    "c": Backend("c", 1),
    "rust": Backend("rust", 1),
}
PARAMS = [
    pytest.param(backend, id=name, marks=[pytest.mark.peer] if backend.name else [])
    for name, backend in BACKENDS.items()
]


@dataclass(frozen=True)
class Share:
    """A shared directory (`host`), its mount point (`mount`), and the processes that serve it."""

    host: Path
    mount: Path
    mounted: Mounted
    daemon: daemon.Daemon
    backend: Backend


def serve(
    backend: Backend, stack: ExitStack, parent: str | None = None, options: Sequence[str] = ()
) -> Share:
    """Start a back-end that shares a folder in `parent`, and mount the share. Both end when the
    stack is closed."""
    for what in ("root", "/dev/fuse"):
        require(what)
    folder = Path(
        stack.enter_context(tempfile.TemporaryDirectory(prefix="vfsd-system-", dir=parent))
    )
    shared = folder / "share"
    shared.mkdir()
    argv = [*daemon.command(backend.name), *backend.options]
    served = stack.enter_context(daemon.serve(argv, shared, folder))
    arguments = [str(served.socket), "--queues", str(backend.queues), *options]
    mounted = stack.enter_context(Mounted(folder, *arguments))
    return Share(shared, mounted.path, mounted, served, backend)


@pytest.fixture(params=PARAMS)
def share(request: pytest.FixtureRequest) -> Iterator[Share]:
    """A fresh share of each back-end."""
    with ExitStack() as stack:
        yield serve(request.param, stack)


@pytest.fixture(scope="module", params=PARAMS)
def module_share(request: pytest.FixtureRequest) -> Iterator[Share]:
    """One share of each back-end for a whole module; in memory, because the trees are large."""
    with ExitStack() as stack:
        yield serve(request.param, stack, MEMORY)


@pytest.fixture
def our_share() -> Iterator[Share]:
    """A fresh share of this project's daemon, through 2 queues."""
    with ExitStack() as stack:
        yield serve(Backend("", 2), stack)
