# SPDX-License-Identifier: Apache-2.0
"""vfsd: a virtio-fs daemon with one sandboxed worker process per request queue."""

import importlib
import sys
from types import ModuleType
from typing import Any, Final

__version__ = "0.1.0"

# Imported by dataclasses (for classes without a docstring: ours have one) and zmq, and seldom used.
# With what they import they took 3 MiB, all processes together.
_SELDOM: Final = ("inspect", "random", "traceback")


def _load_later(name: str) -> None:
    """Put something in a module's place that loads it when it is used.

    importlib.util.LazyLoader does so, too, but takes 2 MiB for itself.
    """
    later = ModuleType(name)

    def load(attribute: str) -> Any:
        if sys.modules.get(name) is later:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    vars(later)["__getattr__"] = load
    sys.modules[name] = later


for _name in _SELDOM:
    if _name not in sys.modules:
        _load_later(_name)
