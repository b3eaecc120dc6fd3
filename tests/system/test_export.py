# SPDX-License-Identifier: Apache-2.0
"""The system calls of an NFS server that exports the share: it keeps file handles, and opens files
by them."""

import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .conftest import Backend, Share, serve
from .file_handles import HANDLE, handle_of, is_stale, opened

FORGETTING = Path("/proc/sys/vm/drop_caches")
FILES = 100


@pytest.fixture
def root(share: Share) -> Iterator[int]:
    fd = os.open(share.mount, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def names(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries]


def is_stale_when_forgotten(root: int, handle: bytes) -> bool:
    """The guest drops its caches first, and so asks the back-end."""
    FORGETTING.write_text("2")
    return is_stale(root, handle)


def test_a_file_is_found_by_its_handle(share: Share, root: int) -> None:
    (share.mount / "a" / "b").mkdir(parents=True)
    file = share.mount / "a" / "b" / "file"
    file.write_text("content")
    handles = [handle_of(file), handle_of(file.parent)]
    file.rename(share.mount / "moved")
    with opened(root, handles[0], os.O_RDWR) as fd:
        assert os.pread(fd, 99, 0) == b"content"
        os.pwrite(fd, b"C", 0)
    assert (share.host / "moved").read_text() == "Content"
    with opened(root, handles[1]) as fd:
        assert names(fd) == []
        above = os.open("..", os.O_RDONLY, dir_fd=fd)
        assert names(above) == ["b"]
        os.close(above)


def test_a_handle_of_what_is_gone_is_stale(share: Share, root: int) -> None:
    file = share.mount / "file"
    file.write_text("content")
    handle = handle_of(file)
    file.unlink()
    wait_until(lambda: is_stale_when_forgotten(root, handle))
    if share.backend.name == "c":
        return  # this peer gives a new file the nodeid and generation of a removed file
    (share.mount / "another").write_text("content of another")
    assert is_stale_when_forgotten(root, handle)


def test_a_handle_that_never_was_is_stale(share: Share, root: int) -> None:
    size, kind, data = HANDLE.unpack(handle_of(share.mount))
    for nodeid in (12345, 1 << 62, (1 << 64) - 1):
        assert is_stale_when_forgotten(
            root, HANDLE.pack(size, kind, struct.pack("<Q", nodeid) + data[8:])
        )


@pytest.fixture(params=["auto", "prefer", "never"])
def exported(request: pytest.FixtureRequest) -> Iterator[Share]:
    with ExitStack() as stack:
        yield serve(Backend("", 2, (f"--inode-file-handles={request.param}",)), stack)


def forget(mount: Path) -> None:
    """Make the kernel's client forget every inode of this mount that no process uses."""
    subprocess.run(["mount", "-i", "-o", "remount", mount], check=True)


def count_stale(mount: Path, handles: dict[Path, bytes]) -> int:
    """Open the file of each handle and compare it with the file on the host; returns the number of
    stale handles."""
    stale = 0
    root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    for path, handle in handles.items():
        try:
            with opened(root, handle) as fd:
                found = os.fstat(fd)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            stale += 1
            continue
        wanted = path.stat()
        assert (found.st_ino, found.st_mode) == (wanted.st_ino, wanted.st_mode)
    os.close(root)
    return stale


def test_handles_last_when_the_guest_has_forgotten_the_files(exported: Share) -> None:
    host, mount = exported.host, exported.mount
    (mount / "a" / "b").mkdir(parents=True)
    names = ["a", "a/b", *(f"a/b/{number}" for number in range(FILES))]
    for name in names[2:]:
        (mount / name).write_text(name)
    handles = {host / name: handle_of(mount / name) for name in names}
    forget(mount)
    if exported.backend.options[0].endswith("never"):
        assert count_stale(mount, handles) == len(handles)
        return
    assert count_stale(mount, handles) == 0
    forget(mount)
    for name in names:
        (mount / name).stat()  # the same inodes are found by their names
    forget(mount)
    moved = {host / "c" / path.relative_to(host / "a"): handle for path, handle in handles.items()}
    (host / "a").rename(host / "c")
    assert count_stale(mount, moved) == 0
    forget(mount)
    (host / "c" / "b" / "0").unlink()
    assert count_stale(mount, {host: moved.pop(host / "c" / "b" / "0")}) == 1
    assert count_stale(mount, moved) == 0
