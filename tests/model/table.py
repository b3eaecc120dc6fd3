# SPDX-License-Identifier: Apache-2.0
"""The models, and the table of their sizes for docs/deaths.md."""

from collections.abc import Callable
from typing import Any, Final

from . import keepers, launchers, pools, requests
from .explorer import Model, explore
from .keepers import Keepers
from .launchers import Launchers
from .pools import Pools
from .requests import DEADLY, FORGET, MKDIR, Requests

# What takes turns and may die; how many deaths; the model.
MODELS: Final[dict[str, tuple[int, Callable[[], Model[Any]]]]] = {
    "keeper and supervisor": (keepers.DEATHS, Keepers),
    "launcher and deputy": (launchers.DEATHS, Launchers),
    "holder, pool and worker": (pools.DEATHS, Pools),
    **{
        f"worker and ring, {op}": (requests.DEATHS, lambda op=op: Requests(op))  # type: ignore[misc]
        for op in (MKDIR, FORGET, DEADLY)
    },
}


def table() -> str:
    lines = ["| model | deaths, at most | states | steps |", "|---|---|---|---|"]
    for name, (deaths, model) in MODELS.items():
        size = explore(model())
        lines.append(f"| {name} | {deaths} | {size.states:,} | {size.steps:,} |")
    return "\n".join(lines)
