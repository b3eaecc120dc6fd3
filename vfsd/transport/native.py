# SPDX-License-Identifier: Apache-2.0
"""The only module that imports the C extension."""

import os
from typing import Any

from vfsd._native import ffi, lib

__all__ = ["check", "ffi", "lib", "text"]


def check(result: int) -> int:
    """Return a C result that is 0 or positive; raise OSError for -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def text(pointer: Any) -> str | None:
    """The text at a `const char *`, None for NULL."""
    return None if pointer == ffi.NULL else bytes(ffi.string(pointer)).decode()  # type: ignore[arg-type]
