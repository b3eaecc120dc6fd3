# SPDX-License-Identifier: Apache-2.0
"""Memory of the processes of a daemon: modules that are imported everywhere and seldom used.

Only the entry points of a daemon call this, before they import anything else of ours: it puts other
modules in the places of these in sys.modules, which a program that imports vfsd must not find done.
"""

import importlib
import sys
from types import ModuleType
from typing import Any, Final

# Imported by dataclasses (for classes without a docstring: ours have one) and zmq. With what they
# import they took 3 MiB, all processes together.
SELDOM_USED: Final = ("inspect", "random", "traceback")


def load_seldom_used_later() -> None:
    """Have each of SELDOM_USED loaded by the first access to it, if nothing has imported it yet."""
    for name in SELDOM_USED:
        if name not in sys.modules:
            sys.modules[name] = _stand_in(name)


def _stand_in(name: str) -> ModuleType:
    """A module that loads the one of this name and gives way to it.

    importlib.util.LazyLoader makes such modules as well, but takes 2 MiB for itself.
    """
    later = ModuleType(name)

    def load(attribute: str) -> Any:
        if sys.modules.get(name) is later:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    vars(later)["__getattr__"] = load
    return later
