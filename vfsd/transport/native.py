# SPDX-License-Identifier: Apache-2.0
"""The one door to the C extension."""

import os
from typing import Any

from vfsd._native import ffi, lib

__all__ = ["check", "ffi", "lib", "text"]


def check(result: int) -> int:
    """Turn C's 0/positive or -errno into a value or an OSError."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def text(pointer: Any) -> str | None:
    """The text at a `const char *`, None for NULL."""
    return None if pointer == ffi.NULL else bytes(ffi.string(pointer)).decode()  # type: ignore[arg-type]
