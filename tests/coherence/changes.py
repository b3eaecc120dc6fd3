# SPDX-License-Identifier: Apache-2.0
"""The ways to change a file that a guest has in its page cache.

`share` is the shared directory on the host, or the mount point of a guest. Each method changes some
pages of a file to a version, and has done so when it returns.
"""

import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .board import FILE_BYTES, PAGE, PAGES, name_of, page_of

ALL: Final = range(PAGES)
FICLONERANGE: Final = 0x4020940D
DAY_NS: Final = 86400 * 10**9


class Changer:
    """The files of one process that changes files. Each way of changing has a method."""

    def __init__(self, share: Path) -> None:
        self._share = share
        self._mappings: dict[int, mmap.mmap] = {}
        self._scratch = share / f"scratch{os.getpid()}"
        self._scratch.write_bytes(bytes(FILE_BYTES))

    def path(self, file: int) -> Path:
        return self._share / name_of(file)

    def sync(self, file: int) -> None:
        fd = os.open(self.path(file), os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def write(self, file: int, pages: range, version: int, flags: int = 0) -> None:
        fd = os.open(self.path(file), os.O_WRONLY | flags)
        try:
            with mmap.mmap(-1, PAGE * len(pages)) as aligned:
                aligned[:] = page_of(version) * len(pages)
                assert os.pwrite(fd, aligned, pages[0] * PAGE) == len(aligned)
        finally:
            os.close(fd)

    def write_directly(self, file: int, pages: range, version: int) -> None:
        self.write(file, pages, version, os.O_DIRECT)

    def write_and_set_times_back(self, file: int, pages: range, version: int) -> None:
        before = self.path(file).stat()
        self.write(file, pages, version)
        os.utime(self.path(file), ns=(before.st_atime_ns, before.st_mtime_ns))

    def write_in_the_past(self, file: int, pages: range, version: int) -> None:
        self.write(file, pages, version)
        now = time.time_ns()
        os.utime(self.path(file), ns=(now - DAY_NS, now - DAY_NS))

    def store(self, file: int, pages: range, version: int) -> None:
        """Through a mapping that stays, so that a page may be dirty and writable already."""
        if file not in self._mappings:
            fd = os.open(self.path(file), os.O_RDWR)
            try:
                self._mappings[file] = mmap.mmap(fd, FILE_BYTES)
            finally:
                os.close(fd)
        self._mappings[file][pages[0] * PAGE : (pages[-1] + 1) * PAGE] = page_of(version) * len(
            pages
        )

    def store_and_sync(self, file: int, pages: range, version: int) -> None:
        self.store(file, pages, version)
        self._mappings[file].flush()

    def copy_range(self, file: int, pages: range, version: int) -> None:
        self._with_scratch(file, pages, version, _copy)

    def clone_range(self, file: int, pages: range, version: int) -> None:
        """A reflink; an ordinary write where the file system has none."""
        try:
            self._with_scratch(file, pages, version, _clone)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL):
                raise
            self.write(file, pages, version)

    def through_a_link(self, file: int, pages: range, version: int) -> None:
        link = self._share / f"link{os.getpid()}"
        link.hardlink_to(self.path(file))
        fd = os.open(link, os.O_WRONLY)
        link.unlink()
        try:
            os.pwrite(fd, page_of(version) * len(pages), pages[0] * PAGE)
        finally:
            os.close(fd)

    def truncate_and_write(self, file: int, _pages: range, version: int) -> None:
        self._mappings.pop(file, None)  # a store beyond the end would be SIGBUS
        self.path(file).write_bytes(page_of(version) * PAGES)

    def rename_over(self, file: int, _pages: range, version: int) -> None:
        self._mappings.pop(file, None)
        new = self._share / f"new{os.getpid()}"
        new.write_bytes(page_of(version) * PAGES)
        new.rename(self.path(file))

    def _with_scratch(
        self, file: int, pages: range, version: int, move: Callable[[int, int, range], None]
    ) -> None:
        source = os.open(self._scratch, os.O_RDWR)
        try:
            os.pwrite(source, page_of(version) * len(pages), pages[0] * PAGE)
            target = os.open(self.path(file), os.O_RDWR)
            try:
                move(source, target, pages)
            finally:
                os.close(target)
        finally:
            os.close(source)


def _copy(source: int, target: int, pages: range) -> None:
    at, left = pages[0] * PAGE, len(pages) * PAGE
    while left:
        copied = os.copy_file_range(source, target, left, at, at)
        at, left = at + copied, left - copied


def _clone(source: int, target: int, pages: range) -> None:
    at = pages[0] * PAGE
    fcntl.ioctl(target, FICLONERANGE, struct.pack("<qQQQ", source, at, len(pages) * PAGE, at))


IN_PLACE: Final = (
    "write", "write_directly", "write_and_set_times_back", "write_in_the_past", "store",
    "store_and_sync", "copy_range", "clone_range", "through_a_link",
)  # fmt: skip
OF_THE_SIZE: Final = ("truncate_and_write", "rename_over")  # these change attributes or names
OF_A_GUEST: Final = ("write", "store_and_sync", "write_and_set_times_back")
