# SPDX-License-Identifier: Apache-2.0
"""What guests other than Linux send and expect, according to the sources of their drivers.

docs/guests.md has the list.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import OPTIONS, Folder
from .daemon import Daemon
from .driver import Frontend, GuestMemory, Segment
from .fuse import (
    ACCESS_IN,
    FATTR_FH,
    FATTR_MODE,
    FATTR_SIZE,
    FORGET_IN,
    IN_HEADER,
    LSEEK_IN,
    OUT_HEADER,
    ROOT,
    SETATTR_IN,
    STATFS_OUT,
    U64,
    WRITE_OUT,
    Attr,
    Guest,
    Op,
    expect,
    names,
    read_in,
    write_in,
)
from .statfs_mount import StatfsMount

READDIRPLUS, READDIRPLUS_AUTO, MAX_PAGES = 1 << 13, 1 << 14, 1 << 22
WINDOWS = READDIRPLUS | MAX_PAGES  # a guest with FUSE 7.31
FUSE_WRITE_CACHE = 1
FATTR_MTIME = 1 << 5


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(*OPTIONS, "--negative-timeout=1") as running:
        yield running


@pytest.fixture
def guest(frontend: Frontend) -> Guest:
    """A guest that is not Linux."""
    guest = Guest(frontend)
    guest.init(31, WINDOWS)
    return guest


def listed(guest: Guest, nodeid: int) -> dict[bytes, Attr]:
    """The attributes that READDIRPLUS lists, by name."""
    return {e.name: e.entry.attr for e in guest.list(nodeid, plus=True) if e.entry}


# Attributes.


def block_sizes(guest: Guest) -> tuple[int, int]:
    fields = STATFS_OUT.unpack(guest.call(Op.STATFS, ROOT, room=80))
    return fields[5], fields[7]


def test_blocks_have_one_size(tmp_path: Path) -> None:
    """Windows multiplies numbers that statfs(2) counts in fragments by the size of a block."""
    with (
        StatfsMount(tmp_path, block=1 << 20, fragment=4096) as mounted,
        Daemon(share=mounted.path) as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        guest = Guest(frontend.setup(1))
        guest.init(31, WINDOWS)
        assert block_sizes(guest) == (4096, 4096)
        guest.init()
        assert block_sizes(guest) == (1 << 20, 4096), "Linux accepts both sizes"


# Lookup counts.


def test_a_forget_whose_length_is_the_headers(guest: Guest, folder: Folder) -> None:
    """Zephyr: the count is in the chain, but the length in the header does not include it."""
    (folder.path / "x").touch()
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    for count, error in ((0, 0), (1, errno.ESTALE)):
        header = IN_HEADER.pack(IN_HEADER.size, Op.FORGET, 1, nodeid, 0, 0, 0, 0, 0)
        pending = guest.submit_raw(header + FORGET_IN.pack(count), -1, op=Op.FORGET)
        assert guest.finish(pending).data == b""
        assert guest.ask(Op.GETATTR, nodeid, bytes(16)).error == error


# Data.


@pytest.fixture
def log(folder: Folder) -> Path:
    path = folder.path / "log"
    path.write_bytes(b"0123456789")
    return path


def write(guest: Guest, nodeid: int, fh: int, offset: int, data: bytes, flags: int = 0) -> int:
    """WRITE with the flags that a guest sends in it; of all guests only Linux sends flags."""
    body = write_in(fh=fh, offset=offset, size=len(data), flags=flags) + data
    return int(WRITE_OUT.unpack(guest.call(Op.WRITE, nodeid, body))[0])


def test_what_was_opened_to_append_appends(guest: Guest, folder: Folder, log: Path) -> None:
    """Hermit: the offset begins at 0, and only OPEN carries O_APPEND."""
    nodeid = guest.lookup(folder.nodeid, b"log").nodeid
    fh = guest.open(nodeid, os.O_WRONLY | os.O_APPEND)
    write(guest, nodeid, fh, 0, b"NEW")
    with log.open("ab") as others:
        others.write(b"-")
    write(guest, nodeid, fh, 3, b"MORE")
    assert log.read_bytes() == b"0123456789NEW-MORE"


def test_what_was_created_to_append_appends(guest: Guest, folder: Folder, log: Path) -> None:
    """Zephyr: the offset of the second piece is too large by the length of the first piece."""
    for name in ("new", log.name):
        entry, fh = guest.create(folder.nodeid, name.encode(), os.O_RDWR | os.O_APPEND)
        size = (folder.path / name).stat().st_size
        write(guest, entry.nodeid, fh, size, b"one")
        write(guest, entry.nodeid, fh, size + 6, b"two")
        assert (folder.path / name).read_bytes()[size:] == b"onetwo"


def test_linux_says_with_each_write_whether_it_appends(
    guest: Guest, folder: Folder, log: Path
) -> None:
    """By the flags that fcntl(2) has set on the file since it was opened."""
    nodeid = guest.lookup(folder.nodeid, b"log").nodeid
    fh = guest.open(nodeid, os.O_RDWR | os.O_APPEND)
    write(guest, nodeid, fh, 0, b"X", os.O_RDWR)
    assert log.read_bytes() == b"X123456789"
    write(guest, nodeid, fh, 0, b"Y", os.O_RDWR | os.O_APPEND)
    assert log.read_bytes() == b"X123456789Y"
    # A store to a mapping.
    body = write_in(fh=fh, offset=1, size=1, write_flags=FUSE_WRITE_CACHE) + b"Z"
    guest.call(Op.WRITE, nodeid, body)
    assert log.read_bytes() == b"XZ23456789Y"


def seek(guest: Guest, nodeid: int, fh: int, offset: int, whence: int) -> int:
    body = LSEEK_IN.pack(fh, offset % (1 << 64), whence, 0)
    return int(U64.unpack(guest.call(Op.LSEEK, nodeid, body))[0])


def test_seeking_is_as_on_the_host(guest: Guest, folder: Folder, log: Path) -> None:
    """Zephyr leaves it to the daemon to check offsets."""
    nodeid = guest.lookup(folder.nodeid, b"log").nodeid
    fh, other = guest.open(nodeid, os.O_RDONLY), guest.open(nodeid, os.O_RDONLY)
    moves = [(3, os.SEEK_CUR), (7, os.SEEK_SET), (-2, os.SEEK_CUR), (100, os.SEEK_CUR),
             (-4, os.SEEK_END), (1, os.SEEK_CUR), (0, os.SEEK_CUR)]  # fmt: skip
    with log.open("rb", buffering=0) as file:
        on_host = [os.lseek(file.fileno(), *move) for move in moves]
    assert [seek(guest, nodeid, fh, *move) for move in moves] == on_host
    assert seek(guest, nodeid, other, 0, os.SEEK_CUR) == 0, (
        "each open file has an offset of its own"
    )
    guest.read(nodeid, other, 0, 5)
    assert seek(guest, nodeid, other, 0, os.SEEK_CUR) == 0, (
        "READ does not use the open file's offset"
    )


def test_seeking_before_the_beginning_or_by_no_known_way(
    guest: Guest, folder: Folder, log: Path
) -> None:
    nodeid = guest.lookup(folder.nodeid, log.name.encode()).nodeid
    fh = guest.open(nodeid, os.O_RDONLY)
    far = (1 << 63) - 1
    moves = [(-1, os.SEEK_SET), (-1, os.SEEK_CUR), (far + 1, os.SEEK_SET), (0, 5), (0, 1 << 31)]
    for offset, whence in moves:
        body = LSEEK_IN.pack(fh, offset % (1 << 64), whence, 0)
        expect(errno.EINVAL, guest.ask(Op.LSEEK, nodeid, body))
    assert seek(guest, nodeid, fh, 5, os.SEEK_SET) == 5
    body = LSEEK_IN.pack(fh, far, os.SEEK_CUR, 0)
    assert guest.ask(Op.LSEEK, nodeid, body).error in (errno.EINVAL, errno.EOVERFLOW)
    assert seek(guest, nodeid, fh, 0, os.SEEK_CUR) == 5


def setattr_body(valid: int, fh: int = 0, size: int = 0, mtime: int = 0, mode: int = 0) -> bytes:
    return SETATTR_IN.pack(valid, 0, fh, size, 0, 0, mtime, 0, 0, 0, 0, mode, 0, 0, 0, 0)


def test_changing_a_link_that_is_not_open(guest: Guest, folder: Folder) -> None:
    """Windows sends fh 0."""
    (folder.path / "link").symlink_to("target")
    nodeid = guest.lookup(folder.nodeid, b"link").nodeid
    guest.call(Op.SETATTR, nodeid, setattr_body(FATTR_FH | FATTR_MTIME, mtime=12345))
    assert (folder.path / "link").lstat().st_mtime == 12345


@pytest.mark.parametrize("fh", [0, 12345, (1 << 64) - 1])
def test_changing_a_file_by_an_fh_that_is_none(
    guest: Guest, folder: Folder, log: Path, fh: int
) -> None:
    nodeid = guest.lookup(folder.nodeid, log.name.encode()).nodeid
    guest.call(Op.SETATTR, nodeid, setattr_body(FATTR_FH | FATTR_SIZE, fh, size=3))
    guest.call(Op.SETATTR, nodeid, setattr_body(FATTR_FH | FATTR_MODE, fh, mode=0o600))
    assert log.read_bytes() == b"012"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


ALICE = (1001, 2001)


def access(guest: Guest, nodeid: int, mask: int, ids: tuple[int, int]) -> int:
    return guest.ask(Op.ACCESS, nodeid, ACCESS_IN.pack(mask, 0), ids=ids).error


@pytest.mark.parametrize(
    ("mode", "owner", "wanted"),
    [
        (0o640, (0, 5555), {os.R_OK: 0, os.W_OK: errno.EACCES}),
        (0o660, (0, 5555), {os.R_OK: 0, os.W_OK: 0, os.X_OK: errno.EACCES}),
        (0o604, (0, 5555), {os.R_OK: 0, os.W_OK: errno.EACCES}),
        (0o600, (0, 5555), {os.R_OK: errno.EACCES}),
        (0o070, (ALICE[0], 5555), {os.R_OK: errno.EACCES}),  # the owner's mode bits decide
        (0o620, ALICE, {os.R_OK: 0, os.W_OK: 0}),
    ],
)
def test_access_by_a_group_that_is_not_sent(
    guest: Guest, folder: Folder, log: Path, mode: int, owner: tuple[int, int],
    wanted: dict[int, int],
) -> None:  # fmt: skip
    """FreeBSD without default_permissions: only the host knows the members of the group."""
    os.chown(log, *owner)
    log.chmod(mode)
    nodeid = guest.lookup(folder.nodeid, log.name.encode()).nodeid
    assert {mask: access(guest, nodeid, mask, ALICE) for mask in wanted} == wanted
    assert guest.mkdir(folder.nodeid, b"made").attr.uid == 0, "the worker is root again"


def test_access_of_linux_is_strict(frontend: Frontend, folder: Folder, log: Path) -> None:
    os.chown(log, 0, 5555)
    log.chmod(0o640)
    guest = Guest(frontend)
    guest.init()
    nodeid = guest.lookup(guest.lookup(ROOT, folder.name).nodeid, b"log").nodeid
    assert access(guest, nodeid, os.R_OK, ALICE) == errno.EACCES
    assert access(guest, nodeid, os.R_OK, (1001, 5555)) == 0


GIB = 1 << 30
HEADER_GPA = GuestMemory.BASE + (8 << 20)  # an address above all that the driver allocates
DATA_GPA = GuestMemory.BASE + (16 << 20)


def test_a_read_of_four_gigabytes_at_once() -> None:
    """UEFI firmware offers room for the whole length of the file, up to 4 GiB - 1, as one
    descriptor."""
    memory = GuestMemory(5 * GIB, regions=1)  # a sparse file
    with Daemon() as daemon, Frontend(daemon.socket, memory) as frontend:
        (daemon.share / "file").write_bytes(b"content")
        guest = Guest(frontend.setup(1))
        guest.init(31, READDIRPLUS)
        nodeid = guest.lookup(ROOT, b"file").nodeid
        fh, size = guest.open(nodeid, os.O_RDONLY), (1 << 32) - 1
        body = read_in(fh=fh, size=size)
        request = IN_HEADER.pack(IN_HEADER.size + len(body), Op.READ, 7, nodeid, *[0] * 5) + body
        memory.write(HEADER_GPA, request)
        chain = [
            Segment(HEADER_GPA, len(request)),
            Segment(HEADER_GPA + 4096, OUT_HEADER.size, True),
            Segment(DATA_GPA, size, True),
        ]
        ring = frontend.rings[1]
        head = ring.submit(chain)
        ring.publish()
        ring.kick()
        assert ring.wait(head) == OUT_HEADER.size + 7
        assert OUT_HEADER.unpack(memory.read(HEADER_GPA + 4096, 16)) == (23, 0, 7)
        assert memory.read(DATA_GPA, 7) == b"content"


# Names.


def test_a_name_that_does_not_exist_is_an_error(guest: Guest, folder: Folder) -> None:
    """An entry with nodeid 0 would be an inode for this guest."""
    expect(errno.ENOENT, guest.ask(Op.LOOKUP, folder.nodeid, names(b"absent")))


# Directories.


def test_dot_and_dot_dot_have_attributes(guest: Guest, folder: Folder) -> None:
    sub = folder.sub(guest, "sub")
    found = listed(guest, sub.nodeid)
    assert found[b"."] == guest.getattr(sub.nodeid)
    assert found[b".."] == guest.getattr(folder.nodeid)


def test_dot_dot_of_the_root_is_the_root(guest: Guest) -> None:
    found = listed(guest, ROOT)
    assert found[b"."] == found[b".."] == guest.getattr(ROOT)


def test_dot_dot_of_a_forgotten_parent_has_a_type_and_no_attributes(
    guest: Guest, folder: Folder
) -> None:
    sub = folder.sub(guest, "sub")
    guest.forget(folder.nodeid)
    up = listed(guest, sub.nodeid)[b".."]
    assert (up.ino, up.mode) == (folder.path.stat().st_ino, stat.S_IFDIR)
    assert (up.mtime, up.uid, up.size) == (0, 0, 0)


def test_dot_and_dot_dot_have_a_type_for_linux(frontend: Frontend, folder: Folder) -> None:
    guest = Guest(frontend)
    guest.init()
    nodeid = guest.lookup(ROOT, folder.name).nodeid
    found = listed(guest, nodeid)
    assert [found[name].mode for name in (b".", b"..")] == [stat.S_IFDIR] * 2
