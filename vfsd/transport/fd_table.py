# SPDX-License-Identifier: Apache-2.0
"""The fd table of this process as a whole."""

import os
from collections.abc import Collection


def close_all_but(kept: Collection[int]) -> None:
    """Close every fd that is open and not in `kept`."""
    first = 0
    for fd in sorted(kept):
        if first < fd:  # Python 3.11 turns closerange(0, 0) into close_range(0, UINT_MAX)
            os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
