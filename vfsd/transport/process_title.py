# SPDX-License-Identifier: Apache-2.0
"""The title of a process in ps: setproctitle, without its import of the logging module.

The package asks logging for a logger, which it uses only where its C part is missing. logging and
its own imports take a fifteenth of the start time, and memory in every process.
"""

import sys
from types import ModuleType
from typing import Any, Final


class _Silent:
    """A logger that drops every message."""

    def debug(self, *_: object) -> None:
        pass


def _import() -> Any:
    if "logging" in sys.modules:
        import setproctitle  # noqa: PLC0415

        return setproctitle
    nobody = ModuleType("logging")
    vars(nobody)["getLogger"] = lambda _name: _Silent()
    sys.modules["logging"] = nobody
    try:
        import setproctitle  # noqa: PLC0415
    finally:
        del sys.modules["logging"]
    return setproctitle


_module: Final = _import()


def setproctitle(title: str) -> None:
    """Show `title` instead of the command line."""
    _module.setproctitle(title)
