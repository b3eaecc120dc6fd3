# SPDX-License-Identifier: Apache-2.0
"""The places where cases run: the bare host, and the share in several configurations.

VFSD_POSIX_DEEP=1 runs every case in every configuration, and more random cases.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from .share import ALL_FEATURES, HOST, Place, Setup, place

DEEP = os.environ.get("VFSD_POSIX_DEEP") == "1"

ONE_QUEUE = Setup("1-queue", 1, ALL_FEATURES)
FOUR_QUEUES = Setup("4-queues", 4, ALL_FEATURES)
NO_KILLPRIV = Setup("no-killpriv-v2", 4, (*ALL_FEATURES, "--no-killpriv-v2"))
NO_IDMAPPED = Setup("no-idmapped-mounts", 4, (*ALL_FEATURES, "--no-idmapped-mounts"))
NEVER = Setup("cache-never", 4, (*ALL_FEATURES, "--cache=never", "--allow-mmap"))
ALWAYS = Setup("cache-always", 4, (*ALL_FEATURES, "--cache=always"))
WRITEBACK = Setup("writeback", 4, (*ALL_FEATURES, "-o", "writeback"))
DIRECT = Setup("direct-io", 4, (*ALL_FEATURES, "--allow-direct-io"))
USERNS = Setup("userns", 4, (*ALL_FEATURES, "--userns"))
PLAIN = Setup("plain", 4)

Places = Callable[[Setup], Place]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves fds or processes; mounts live as long as the session."""
    fds, children = _fds(), _children()
    yield
    gc.collect()
    assert _fds() <= fds
    assert _children() <= children


def _fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def _children() -> set[str]:
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


@pytest.fixture(scope="session")
def places(requires: Callable[[str], str]) -> Iterator[Places]:
    """A function: `places(setup)` is the place of that setup, created at the first call for it."""
    requires("root")
    requires("/dev/fuse")
    with ExitStack() as stack:
        yield lru_cache(maxsize=None)(lambda setup: stack.enter_context(place(setup)))


@pytest.fixture(scope="session")
def host(places: Places) -> Place:
    return places(HOST)


@pytest.fixture(scope="session")
def host_memory(places: Places) -> Place:
    return places(in_memory(HOST))


def in_memory(setup: Setup) -> Setup:
    return replace(setup, name=f"{setup.name}-tmpfs", in_memory=True)


def shares(*setups: Setup, deep: tuple[Setup, ...] = ()) -> pytest.MarkDecorator:
    """Run the test in each of these setups, and with VFSD_POSIX_DEEP=1 in the `deep` ones."""
    chosen = (*setups, *deep) if DEEP else setups
    return pytest.mark.parametrize("share", chosen, indirect=True, ids=lambda setup: setup.name)


@pytest.fixture(scope="session")
def share(request: pytest.FixtureRequest, places: Places) -> Place:
    return places(request.param)
