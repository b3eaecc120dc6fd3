# SPDX-License-Identifier: Apache-2.0
"""name_to_handle_at(2) and open_by_handle_at(2), as an NFS server uses them."""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HANDLE = struct.Struct("<Ii128s")  # struct file_handle: bytes, type, the handle
AT_FDCWD = -100
WIDE_MOUNT_ID = 1  # AT_HANDLE_MNT_ID_UNIQUE
CONNECTABLE = 2  # AT_HANDLE_CONNECTABLE

_libc = ctypes.CDLL(None, use_errno=True)


def handle_of(path: Path, flags: int = 0) -> bytes:
    """The file handle that name_to_handle_at(2) returns for a path."""
    handle = ctypes.create_string_buffer(HANDLE.pack(128, 0, b""), HANDLE.size)
    mount = ctypes.c_uint64()
    arguments = (AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount), flags)
    if _libc.name_to_handle_at(*arguments):
        raise OSError(ctypes.get_errno(), "name_to_handle_at", str(path))
    return handle.raw


@contextmanager
def opened(root: int, handle: bytes, flags: int = os.O_RDONLY) -> Iterator[int]:
    """An fd of open_by_handle_at(2). `root`: an fd of any file on the mount."""
    fd = _libc.open_by_handle_at(root, ctypes.create_string_buffer(handle, HANDLE.size), flags)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    try:
        yield fd
    finally:
        os.close(fd)


def is_stale(root: int, handle: bytes) -> bool:
    """Does the handle name no file any more?"""
    try:
        with opened(root, handle):
            return False
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return True
