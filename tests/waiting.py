# SPDX-License-Identifier: Apache-2.0
"""Waiting for what a test expects, on a machine that may be loaded."""

import time
from collections.abc import Callable

LOADED = 10  # by this factor things may take longer than on an idle machine
HANG = 300.0  # seconds; what takes longer hangs, however loaded the machine is


def wait_until(true: Callable[[], object], seconds: float = 10.0, what: str = "") -> None:
    """Wait for a condition. `seconds`: what is more than enough on an idle machine."""
    deadline = time.monotonic() + LOADED * seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {LOADED * seconds} s: {what}"
        time.sleep(0.005)
