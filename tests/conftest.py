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
    return found if found is not None else cannot_run(f"needs {what}, which this machine lacks")


def cannot_run(complaint: str) -> NoReturn:
    """Skip the test, or fail it if VFSD_TESTS_MUST_RUN is set."""
    if os.environ.get("VFSD_TESTS_MUST_RUN") == "1":
        pytest.fail(complaint)
    pytest.skip(complaint)
