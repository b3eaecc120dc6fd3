# SPDX-License-Identifier: Apache-2.0
"""The end of all imports, before the guest's files are where Python looks for modules."""

import sys
import warnings
from contextlib import suppress

from vfsd.transport.errors import describe


def import_nothing_more() -> None:
    """From here on only modules inside the interpreter can be imported, and errors are printed
    without source lines."""
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [f for f in sys.meta_path if f.__module__ == "_frozen_importlib"]
    sys.excepthook = lambda _kind, error, _trace: _print(error)
    sys.unraisablehook = lambda args: _print(args.exc_value or args.exc_type())
    warnings.simplefilter("ignore")


def _print(error: BaseException) -> None:
    with suppress(BlockingIOError, BrokenPipeError):  # the supervisor has read enough, or is gone
        sys.stderr.write(f"vfsd: {describe(error)}\n")
