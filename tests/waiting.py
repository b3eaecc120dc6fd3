# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition that a test expects, on a machine that may be loaded."""

import time
from collections.abc import Callable

LOADED = 10  # a loaded machine may need this many times as long as an idle machine
HANG = 300.0  # seconds; anything that takes longer hangs, however loaded the machine is


def wait_until(true: Callable[[], object], seconds: float = 10.0, what: str = "") -> None:
    """Wait for a condition. `seconds`: a time that is more than enough on an idle machine."""
    deadline = time.monotonic() + LOADED * seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {LOADED * seconds} s: {what}"
        time.sleep(0.005)
