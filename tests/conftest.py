# SPDX-License-Identifier: Apache-2.0
"""For every test: it may leave nothing behind, and if it cannot run here, it says why.

VFSD_TESTS_MUST_RUN=1 (set by scripts/test) turns "cannot run here" into a failure.
HYPOTHESIS_PROFILE=deep runs more generated cases, at random.
"""

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.sandbox_modes import NAMESPACE, SANDBOX_MODES, SandboxMode

settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("deep", parent=settings.get_profile("ci"), derandomize=False,
                          max_examples=5000)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

PROGRAM_FOLDERS = ("/usr/lib/qemu", "/usr/libexec", "/usr/sbin", "/sbin")
SETTLE_SECONDS = 30.0  # until fds and processes of a test are gone; the machine may be loaded


def open_fds() -> dict[int, str]:
    """Number -> link in /proc of each fd of this process."""
    fds = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            fds[int(path.name)] = str(path.readlink())
        except FileNotFoundError:
            continue  # the fd that lists the folder
    return fds


def child_processes() -> dict[int, str]:
    """The living descendants of this process."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            found[child.pid] = " ".join(child.cmdline()) or child.name()
        except psutil.Error:
            continue
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses `sandbox_mode` in each mode of its marker: tests/sandbox_modes.py."""
    if "sandbox_mode" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("sandbox_modes")
        modes = [SANDBOX_MODES[name] for name in marker.args] if marker else [NAMESPACE]
        metafunc.parametrize("sandbox_mode", modes, indirect=True, ids=str, scope="module")


@pytest.fixture(scope="module")
def sandbox_mode(request: pytest.FixtureRequest) -> SandboxMode:
    """The mode that the daemons of a test are started in."""
    mode: SandboxMode = request.param
    return mode


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves fds or processes."""
    fds, children = open_fds(), child_processes()
    yield
    deadline = time.monotonic() + SETTLE_SECONDS
    while left := _left(fds, children):
        gc.collect()
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {left}")
        time.sleep(0.02)


def _left(fds: dict[int, str], children: dict[int, str]) -> list[str]:
    new_fds = [f"fd {fd}: {what}" for fd, what in open_fds().items() if fd not in fds]
    processes = child_processes().items()
    return new_fds + [f"process {pid}: {what}" for pid, what in processes if pid not in children]


@pytest.fixture(scope="session")
def requires() -> Callable[[str], str]:
    """`requires(what)`: skip the test unless the program or the path exists; "root": unless the
    test runs as root."""
    return require


def require(what: str) -> str:
    """The path of the program or file. If it does not exist, the test is skipped or fails."""
    if what == "root":
        found: str | None = "root" if os.geteuid() == 0 else None
    elif what.startswith("/"):
        found = what if Path(what).exists() else None
    else:
        folders = [os.environ.get("PATH", ""), *PROGRAM_FOLDERS]
        found = shutil.which(what, path=os.pathsep.join(folders))
    return found if found is not None else cannot_run(f"needs {what}, which this machine lacks")


def cannot_run(complaint: str) -> NoReturn:
    """Skip the test, or fail it if VFSD_TESTS_MUST_RUN is set."""
    if os.environ.get("VFSD_TESTS_MUST_RUN") == "1":
        pytest.fail(complaint)
    pytest.skip(complaint)
