# SPDX-License-Identifier: Apache-2.0
"""A session in another process: the fds that it names have other numbers there."""

from collections.abc import Mapping
from typing import Any, Final

EVENTFDS: Final = ("kick_fd", "call_fd", "err_fd")


def renumbered(snapshot: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """A snapshot of Session with these numbers for its fds; LookupError if an fd has no number."""
    inflight = snapshot["inflight"]
    return {
        **snapshot,
        "memory": [[*row[:-1], numbers[row[-1]]] for row in snapshot["memory"]],
        "inflight": inflight and [*inflight[:-1], numbers[inflight[-1]]],
        "vrings": [_renumbered(row, numbers) for row in snapshot["vrings"]],
    }


def _renumbered(row: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    fds = {name: None if row[name] is None else numbers[row[name]] for name in EVENTFDS}
    return {**row, **fds}
