# SPDX-License-Identifier: Apache-2.0
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.pool_process import Link, PoolProcess


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, because Unix sockets are bound in it."""
    with tempfile.TemporaryDirectory(prefix="vfsd-") as path:
        Path(path).chmod(0o777)
        yield Path(path)


@pytest.fixture
def new_pool(folder: Path) -> Iterator[Callable[..., PoolProcess]]:
    """A function that starts a pool; all pools end with the test."""
    pools: list[PoolProcess] = []

    def start(**options: Any) -> PoolProcess:
        pools.append(PoolProcess(folder, **options))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


@pytest.fixture
def link() -> Iterator[Callable[[str], Link]]:
    links: list[Link] = []

    def connect(path: str) -> Link:
        links.append(Link(path))
        return links[-1]

    yield connect
    for one in links:
        one.close()
