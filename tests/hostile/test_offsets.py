# SPDX-License-Identifier: Apache-2.0
"""Offsets and lengths beyond the host's off_t are refused, and never mean the fd's own offset."""

import errno
import os
from collections.abc import Callable

import pytest

from tests.sandbox_modes import in_every_mode

from .conftest import Folder
from .fuse import (
    COPY_IN,
    FALLOCATE_IN,
    FATTR_FH,
    FATTR_SIZE,
    LK_IN,
    LSEEK_IN,
    SETATTR_IN,
    Guest,
    Op,
    Reply,
    expect,
    read_in,
    write_in,
)

pytestmark = [pytest.mark.usefixtures("nobody_dies"), in_every_mode]

MOST = (1 << 63) - 1  # the largest off_t
BEYOND = (MOST + 1, (1 << 64) - 4096, (1 << 64) - 2, (1 << 64) - 1)
DATA = b"0123456789"


class Target:
    """An open file with DATA, open for reading and writing."""

    def __init__(self, guest: Guest, folder: Folder) -> None:
        self.guest = guest
        self.path = folder.path / "x"
        entry, self.fh = guest.create(folder.nodeid, b"x")
        self.nodeid = entry.nodeid
        guest.write(self.nodeid, self.fh, 0, DATA)

    def ask(self, op: Op, body: bytes) -> Reply:
        return self.guest.ask(op, self.nodeid, body)

    def read(self, offset: int, size: int = 4096) -> Reply:
        return self.ask(Op.READ, read_in(fh=self.fh, offset=offset, size=size))

    def write(self, offset: int, flags: int = os.O_RDWR) -> Reply:
        body = write_in(fh=self.fh, offset=offset, size=3, flags=flags) + b"new"
        return self.ask(Op.WRITE, body)

    def copy(
        self, off_in: int, off_out: int, length: int = 4, op: Op = Op.COPY_FILE_RANGE
    ) -> Reply:
        body = COPY_IN.pack(self.fh, off_in, self.nodeid, self.fh, off_out, length, 0)
        return self.ask(op, body)

    def fallocate(self, offset: int, length: int, mode: int = 0) -> Reply:
        return self.ask(Op.FALLOCATE, FALLOCATE_IN.pack(self.fh, offset, length, mode, 0))

    def lock(self, start: int, end: int) -> Reply:
        return self.ask(Op.SETLK, LK_IN.pack(self.fh, 1, start, end, 1, 1, 0, 0))

    def truncate(self, size: int, valid: int) -> Reply:
        return self.ask(Op.SETATTR, SETATTR_IN.pack(valid, 0, self.fh, size, *[0] * 12))

    def seek(self, offset: int, whence: int) -> Reply:
        return self.ask(Op.LSEEK, LSEEK_IN.pack(self.fh, offset, whence, 0))


@pytest.fixture
def target(guest: Guest, folder: Folder) -> Target:
    return Target(guest, folder)


INVALID = (errno.EINVAL,)
TOO_LARGE = (errno.EFBIG,)
INVALID_OR_TOO_LONG = (errno.EINVAL, errno.EOVERFLOW)  # the second where offset + length overflows
PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
REQUESTS: dict[str, tuple[tuple[int, ...], Callable[[Target, int], Reply]]] = {
    "READ": (INVALID, lambda t, at: t.read(at)),
    "WRITE": (INVALID, lambda t, at: t.write(at)),
    "WRITE, append": (INVALID, lambda t, at: t.write(at, os.O_RDWR | os.O_APPEND)),
    "COPY from": (INVALID_OR_TOO_LONG, lambda t, at: t.copy(at, 0)),
    "COPY to": (INVALID_OR_TOO_LONG, lambda t, at: t.copy(0, at)),
    "COPY_64 to": (INVALID_OR_TOO_LONG, lambda t, at: t.copy(0, at, op=Op.COPY_FILE_RANGE_64)),
    "FALLOCATE offset": (INVALID, lambda t, at: t.fallocate(at, 1)),
    "FALLOCATE length": (INVALID, lambda t, at: t.fallocate(0, at)),
    "FALLOCATE punch": (INVALID, lambda t, at: t.fallocate(at, at, PUNCH)),
    "SETLK start and end": (INVALID, lambda t, at: t.lock(at, at)),
    "SETLK end": (INVALID, lambda t, at: t.lock(0, at)),
    "SETATTR size": (TOO_LARGE, lambda t, at: t.truncate(at, FATTR_SIZE)),
    "SETATTR size of fh": (TOO_LARGE, lambda t, at: t.truncate(at, FATTR_SIZE | FATTR_FH)),
    "LSEEK data": ((errno.ENXIO,), lambda t, at: t.seek(at, os.SEEK_DATA)),
    "LSEEK hole": ((errno.ENXIO,), lambda t, at: t.seek(at, os.SEEK_HOLE)),
}


@pytest.mark.parametrize("offset", BEYOND, ids=hex)
@pytest.mark.parametrize("request_name", REQUESTS)
def test_what_is_beyond_is_refused(target: Target, request_name: str, offset: int) -> None:
    errors, send = REQUESTS[request_name]
    assert send(target, offset).error in errors
    assert target.path.read_bytes() == DATA


def outcome(call: Callable[[], object]) -> int:
    """The errno of a call, 0 if it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize("offset", [MOST, MOST - 1, MOST - 4095], ids=hex)
def test_what_ends_beyond_is_as_on_the_host(target: Target, offset: int) -> None:
    """An offset that fits into off_t, and a length with which the end does not fit."""
    with target.path.open("r+b") as file:
        fd = file.fileno()
        on_host = {
            "READ": outcome(lambda: os.pread(fd, 4096, offset)),
            "WRITE": outcome(lambda: os.pwrite(fd, b"new", offset)),
            "COPY from": outcome(lambda: os.copy_file_range(fd, fd, 4096, offset, 0)),
            "COPY to": outcome(lambda: os.copy_file_range(fd, fd, 4096, 0, offset)),
            "FALLOCATE": outcome(lambda: os.posix_fallocate(fd, offset, 4096)),
        }
    through_the_share = {
        "READ": target.read(offset).error,
        "WRITE": target.write(offset).error,
        "COPY from": target.copy(offset, 0, 4096).error,
        "COPY to": target.copy(0, offset, 4096).error,
        "FALLOCATE": target.fallocate(offset, 4096).error,
    }
    assert through_the_share == on_host
    assert target.path.read_bytes() == DATA


def test_seek_end_takes_a_negative_offset(target: Target) -> None:
    """SEEK_END takes an offset below 0: the guest's offset is signed there."""
    assert target.seek((1 << 64) - 3, os.SEEK_END).data == (len(DATA) - 3).to_bytes(8, "little")
    expect(errno.EINVAL, target.seek((1 << 64) - 11, os.SEEK_END))
