# SPDX-License-Identifier: Apache-2.0
"""A sandbox that serves, as the supervisor of the next version sees it (upgrade.py)."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Former:
    """A sandbox that serves, in another daemon: the records of its rings, and the socket by which a
    sandbox that takes its place gets its files (heritage.py). `on_prepared()` is called when that
    sandbox waits for the files."""

    rings: int
    heritage: int
    on_prepared: Callable[[], None]
