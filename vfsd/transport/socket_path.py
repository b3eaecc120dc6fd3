# SPDX-License-Identifier: Apache-2.0
"""Paths of sockets, which may be longer than an address: sockaddr_un has room for 108 bytes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

ADDRESS_MAX: Final = 107  # bytes; a zero ends the text


@contextmanager
def addressed(path: str) -> Iterator[str]:
    """The address of `path` for bind() and connect(): its last part where `path` is too long, while
    its folder is the working directory of this process. OSError if there is no such folder."""
    if len(os.fsencode(path)) <= ADDRESS_MAX:
        yield path
        return
    folder, name = os.path.split(path)
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(folder)
        try:
            yield name
        finally:
            os.fchdir(before)
    finally:
        os.close(before)
