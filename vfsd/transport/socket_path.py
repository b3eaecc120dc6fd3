# SPDX-License-Identifier: Apache-2.0
"""Paths of sockets. A path may be longer than an address: sockaddr_un has room for 108 bytes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

ADDRESS_MAX: Final = 107  # bytes; a zero byte ends the text


@contextmanager
def addressed(path: str) -> Iterator[str]:
    """The address of `path` for bind() and connect(). Where `path` is too long, its last part is
    the address, and its folder is the working directory of this process until the context ends.
    OSError if the folder does not exist."""
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
