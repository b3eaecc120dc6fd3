# SPDX-License-Identifier: Apache-2.0
"""Each guest's driver, from INIT to the end of its session, with each cache mode. Each session runs
twice, because the state that a session leaves must not affect the next one.
"""

from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest

from tests.conftest import require
from tests.hostile.daemon import Daemon
from tests.hostile.driver import Frontend

from .driver import Driver
from .edk2 import Edk2
from .freebsd import FreeBsd
from .hermit import Hermit
from .linux_5_4 import Linux54
from .linux_5_10 import Linux510
from .linux_6_1 import Linux61
from .linux_6_6 import Linux66
from .linux_6_12 import Linux612
from .linux_7_2 import Linux72
from .linux_7_4 import Linux74
from .osv import Osv
from .unikraft import Unikraft
from .windows import Windows
from .zephyr import Zephyr

DRIVERS = (Windows, Edk2, Osv, Hermit, Zephyr, FreeBsd, Unikraft, Linux54, Linux510, Linux61,
           Linux66, Linux612, Linux72, Linux74)  # fmt: skip
OPTIONS = {
    "default": (),
    "never": ("--cache=never",),
    "always": ("--cache=always", "--xattr"),
    "writeback": ("--writeback", "--flock", "--posix-lock"),
}
QUEUES = 2


@pytest.fixture(scope="module", params=OPTIONS)
def frontend(request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, Frontend]]:
    require("root")
    with Daemon("--keep-listening", *OPTIONS[request.param]) as daemon:
        connection = Frontend(daemon.socket).setup(QUEUES)
        yield daemon, connection
        connection.close()


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.__name__)
def test_a_session(driver: type[Driver], frontend: tuple[Daemon, Frontend]) -> None:
    daemon, connection = frontend
    before = daemon.pids().keys()
    mark = connection.memory.mark()
    try:
        for _ in range(2):
            driver(connection, daemon.share).use()
        assert not list(daemon.share.iterdir())
    finally:
        connection.memory.reset(mark)
        for path in daemon.share.iterdir():
            remove(path)
    assert daemon.pids().keys() == before, "a process has died"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        rmtree(path)
    else:
        path.unlink()
