# SPDX-License-Identifier: Apache-2.0
"""Saves memory in the daemon's processes: modules that every process imports and few use.

Only the entry points of a daemon call this, before they import any other module of vfsd. It puts
stand-ins for these modules into sys.modules, which must not happen in a program that only imports
vfsd.
"""

import importlib
import sys
from types import ModuleType
from typing import Any, Final

# Imported by dataclasses (for classes without a docstring: ours have one) and by zmq. Together with
# their own imports these modules took 3 MiB in all processes.
SELDOM_USED: Final = ("inspect", "random", "traceback")


def load_seldom_used_later() -> None:
    """Let the first access to each of SELDOM_USED import it, unless it is imported already."""
    for name in SELDOM_USED:
        if name not in sys.modules:
            sys.modules[name] = _stand_in(name)


def _stand_in(name: str) -> ModuleType:
    """A module that loads the real module `name` at the first access and is replaced by it.

    importlib.util.LazyLoader makes such modules as well, but takes 2 MiB for itself.
    """
    later = ModuleType(name)

    def load(attribute: str) -> Any:
        if sys.modules.get(name) is later:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    vars(later)["__getattr__"] = load
    return later
