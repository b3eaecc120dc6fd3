# SPDX-License-Identifier: Apache-2.0
"""Every opcode on open files and directories, byte by byte, over one queue and several."""

import errno
import fcntl
import os
import struct
import termios

import pytest

from .conftest import QUEUES, Folder
from .driver import NoReplyError, Segment
from .fuse import (
    COPY_IN,
    CREATE_IN,
    FALLOCATE_IN,
    FLUSH_IN,
    FSYNC_IN,
    GETXATTR_IN,
    IN_HEADER,
    IOCTL_IN,
    IOCTL_OUT,
    LINK_IN,
    LINUX_FLAGS,
    LK_IN,
    LK_OUT,
    LSEEK_IN,
    OPEN_OUT,
    OUT_HEADER,
    ROOT,
    SETXATTR_COMPAT_IN,
    SETXATTR_EXT,
    SETXATTR_IN,
    U64,
    Entry,
    Guest,
    Op,
    Reply,
    expect,
    names,
    read_in,
    write_in,
)

# Files.


@pytest.mark.parametrize("indirect", [True, False])
@pytest.mark.parametrize("pieces", [(), (40, 40, 4096), (100,), (40, 40, 1), (3, 5, 7, 11, 4093)])
def test_data_goes_to_and_from_many_small_segments(
    guest: Guest, folder: Folder, pieces: tuple[int, ...], indirect: bool
) -> None:
    guest.indirect = indirect
    data = os.urandom(20000 if pieces[-1:] > (99,) else 30)
    entry, fh = guest.create(folder.nodeid, b"x")
    if not indirect and len(data) / (pieces or (len(data),))[-1] > 100:
        data = data[:8000]
    assert guest.write(entry.nodeid, fh, 11, data, pieces=pieces) == len(data)
    assert (folder.path / "x").read_bytes() == bytes(11) + data
    assert guest.read(entry.nodeid, fh, 11, len(data), pieces=pieces) == data
    assert guest.read(entry.nodeid, fh, 20, len(data) + 99, pieces=pieces) == data[9:]
    assert guest.read(entry.nodeid, fh, 1 << 40, 4096) == b""


def test_a_megabyte_in_one_request(guest: Guest, folder: Folder) -> None:
    data = os.urandom(1 << 20)
    entry, fh = guest.create(folder.nodeid, b"x")
    pieces = (40, 40, *[4096] * 255)
    assert guest.write(entry.nodeid, fh, 0, data, pieces=pieces) == len(data)
    assert (folder.path / "x").read_bytes() == data
    assert guest.read(entry.nodeid, fh, 0, 1 << 20, pieces=(16, *[4096] * 256)) == data


def test_data_that_crosses_two_adjoining_regions(guest: Guest, folder: Folder) -> None:
    memory = guest.memory
    first = memory.regions[1].gpa - 3000
    entry, fh = guest.create(folder.nodeid, b"x")
    data = os.urandom(6000)
    (folder.path / "x").write_bytes(data)
    ring = guest.frontend.rings[1]
    request = IN_HEADER.pack(80, Op.READ, 99, entry.nodeid, 0, 0, 0, 0, 0)
    request += read_in(fh=fh, size=6000)
    gpa = memory.alloc(80)
    memory.write(gpa, request)
    head = ring.submit([Segment(gpa, 80), Segment(first, 6016, True)])
    ring.publish()
    ring.kick()
    assert ring.wait(head) == 6016
    got = memory.read(first, 6016)
    assert OUT_HEADER.unpack_from(got) == (6016, 0, 99)
    assert got[16:] == data


def test_a_file_opened_on_one_queue_is_used_on_the_others(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x", queue=1)
    for queue in range(1, QUEUES + 1):
        guest.write(entry.nodeid, fh, queue * 10, b"%d" % queue * 10, queue=queue)
    for queue in range(1, QUEUES + 1):
        got = guest.read(entry.nodeid, fh, queue * 10, 10, queue=1 + queue % QUEUES)
        assert got == b"%d" % queue * 10
    guest.release(entry.nodeid, fh, queue=3)
    for queue in range(1, QUEUES + 1):
        body = read_in(fh=fh, size=10)
        expect(errno.EBADF, guest.ask(Op.READ, entry.nodeid, body, queue=queue))


def test_create_honours_its_flags(guest: Guest, folder: Folder) -> None:
    (folder.path / "x").write_text("old")
    body = CREATE_IN.pack(os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o100600, 0, 0) + names(b"x")
    expect(errno.EEXIST, guest.ask(Op.CREATE, folder.nodeid, body))
    entry, fh = guest.create(folder.nodeid, b"x")
    assert guest.read(entry.nodeid, fh, 0, 9) == b"old"
    entry, fh = guest.create(folder.nodeid, b"x", os.O_RDWR | os.O_TRUNC)
    assert guest.read(entry.nodeid, fh, 0, 9) == b""
    body = CREATE_IN.pack(os.O_CREAT | os.O_WRONLY, 0o100604, 0, 0) + names(b"y")
    data = guest.call(Op.CREATE, folder.nodeid, body, room=144, ids=(12, 34))
    st = (folder.path / "y").stat()
    assert (st.st_mode, st.st_uid, st.st_gid) == (0o100604, 12, 34)
    attr = Entry.parse(data).attr
    assert (attr.mode, attr.nlink, attr.owner) == (0o100604, 1, (12, 34))
    # The read-only mode of a new file does not stop its creator from writing to it.
    entry, fh = guest.create(folder.nodeid, b"z", mode=0o400)
    assert guest.write(entry.nodeid, fh, 0, b"new") == 3


def test_open_honours_its_flags(guest: Guest, folder: Folder) -> None:
    path = folder.path / "x"
    path.write_text("0123456789")
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    write_only = guest.open(nodeid, os.O_WRONLY)
    read_only = guest.open(nodeid, os.O_RDONLY)
    body = read_in(fh=write_only, size=4)
    expect(errno.EBADF, guest.ask(Op.READ, nodeid, body))
    body = write_in(fh=read_only, size=1)
    expect(errno.EBADF, guest.ask(Op.WRITE, nodeid, body + b"x"))
    append = guest.open(nodeid, os.O_WRONLY | os.O_APPEND)
    body = write_in(fh=append, offset=3, size=1, flags=os.O_WRONLY | os.O_APPEND)
    guest.call(Op.WRITE, nodeid, body + b"!", room=8)
    assert path.read_text() == "0123456789!"
    guest.open(nodeid, os.O_RDWR | os.O_TRUNC)
    assert path.read_text() == ""
    expect(errno.ENOTDIR, guest.ask(Op.OPENDIR, nodeid, bytes(8)))


@pytest.mark.parametrize("kind", ["fifo", "symlink", "directory"])
def test_open_refuses_what_is_no_regular_file(guest: Guest, folder: Folder, kind: str) -> None:
    path = folder.path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "symlink":
        path.symlink_to("/etc/passwd")
    else:
        path.mkdir()
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    assert guest.ask(Op.OPEN, nodeid, struct.pack("<II", os.O_RDWR, 0), room=16).error


def test_flush_fsync_release_in_every_order(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    for _ in range(2):
        assert guest.call(Op.FLUSH, entry.nodeid, FLUSH_IN.pack(fh, 0, 0, 1)) == b""
        assert guest.call(Op.FSYNC, entry.nodeid, FSYNC_IN.pack(fh, 0, 0)) == b""
        assert guest.call(Op.FSYNC, entry.nodeid, FSYNC_IN.pack(fh, 1, 0)) == b""
    guest.release(entry.nodeid, fh)
    expect(errno.EBADF, guest.ask(Op.FSYNC, entry.nodeid, FSYNC_IN.pack(fh, 0, 0)))
    fh = guest.open(folder.nodeid, os.O_RDONLY, op=Op.OPENDIR)
    assert guest.call(Op.FSYNCDIR, folder.nodeid, FSYNC_IN.pack(fh, 0, 0)) == b""
    guest.release(folder.nodeid, fh, op=Op.RELEASEDIR)
    assert guest.call(Op.SYNCFS, folder.nodeid, bytes(8)) == b""


def test_many_requests_at_once_are_each_answered_once(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    (folder.path / "x").write_bytes(bytes(range(256)) * 256)
    waiting = []
    for i in range(100):
        body = read_in(fh=fh, offset=i * 7, size=600)
        waiting += [
            (i, guest.submit(Op.READ, entry.nodeid, body, room=600, queue=queue, kick=i % 10 == 9))
            for queue in range(1, QUEUES + 1)
        ]
    content = (folder.path / "x").read_bytes()
    for i, pending in waiting:
        assert guest.finish(pending).data == content[i * 7 :][:600]


# Directories.


@pytest.fixture(scope="module")
def crowd() -> set[bytes]:
    return {b"%03d-" % i + b"n" * (i * 7 % 240) for i in range(700)}


@pytest.fixture
def crowded(folder: Folder, crowd: set[bytes]) -> Folder:
    for name in crowd:
        (folder.path / os.fsdecode(name)).touch()
    return folder


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [4096, 128 << 10])
def test_readdir_is_complete_and_has_no_doubles(
    guest: Guest, crowded: Folder, crowd: set[bytes], size: int, plus: bool
) -> None:
    found = guest.list(crowded.nodeid, size, plus=plus)
    assert len(found) == len(crowd) + 2
    assert {entry.name for entry in found} == crowd | {b".", b".."}
    for entry in found:
        path = crowded.path / os.fsdecode(entry.name)
        if entry.name not in (b".", b".."):
            assert entry.ino == path.lstat().st_ino
            assert entry.kind == 8  # DT_REG
        if plus and entry.name not in (b".", b".."):
            assert entry.entry is not None
            assert entry.entry.nodeid
            assert entry.entry.attr.ino == entry.ino


@pytest.mark.parametrize("plus", [False, True])
def test_readdir_goes_on_at_any_offset_on_any_queue(
    guest: Guest, crowded: Folder, plus: bool
) -> None:
    whole = guest.list(crowded.nodeid, 128 << 10)
    fh = guest.open(crowded.nodeid, os.O_RDONLY, op=Op.OPENDIR)
    for i in (650, 0, 300, 301, 699, 5):
        part = guest.readdir(
            crowded.nodeid, fh, whole[i].off, 4096, plus=plus, queue=1 + i % QUEUES
        )
        assert [e.name for e in part] == [e.name for e in whole[i + 1 :][: len(part)]]
        assert part
    assert guest.readdir(crowded.nodeid, fh, whole[-1].off, 4096) == []


def test_readdirplus_looks_up_all_but_dot_and_dot_dot(guest: Guest, folder: Folder) -> None:
    (folder.path / "x").touch()
    found = {e.name: e for e in guest.list(folder.nodeid, plus=True)}
    nodeids = {name: e.entry.nodeid for name, e in found.items() if e.entry}
    nodeid = nodeids[b"x"]
    assert guest.lookup(folder.nodeid, b"x").nodeid == nodeid
    assert nodeids[b"."] == nodeids[b".."] == 0
    guest.forget(nodeid, 1)
    assert guest.getattr(nodeid).size == 0
    guest.forget(nodeid, 1)
    assert guest.ask(Op.GETATTR, nodeid, bytes(16), room=104).error


@pytest.mark.parametrize("plus", [False, True])
def test_readdir_without_room_for_one_entry(guest: Guest, folder: Folder, plus: bool) -> None:
    (folder.path / ("x" * 255)).touch()
    fh = guest.open(folder.nodeid, os.O_RDONLY, op=Op.OPENDIR)
    op = Op.READDIRPLUS if plus else Op.READDIR
    for size in (0, 1, 24, 31):
        reply = guest.ask(op, folder.nodeid, read_in(fh=fh, size=size), room=size)
        assert reply.error in (0, errno.EINVAL)
        assert reply.data == b""
    names_found = {e.name for e in guest.list(folder.nodeid, plus=plus)}
    assert b"x" * 255 in names_found


def test_a_directory_shows_what_was_made_after_it_was_opened(guest: Guest, folder: Folder) -> None:
    fh = guest.open(folder.nodeid, os.O_RDONLY, op=Op.OPENDIR)
    guest.readdir(folder.nodeid, fh, 0, 4096)
    (folder.path / "late").touch()
    assert b"late" in {e.name for e in guest.readdir(folder.nodeid, fh, 0, 4096)}


# Extended attributes.


def set_xattr(guest: Guest, nodeid: int, name: bytes, value: bytes, flags: int = 0) -> Reply:
    size = SETXATTR_IN.size if guest.flags & SETXATTR_EXT else SETXATTR_COMPAT_IN.size
    head = SETXATTR_IN.pack(len(value), flags, 0, 0)[:size]
    return guest.ask(Op.SETXATTR, nodeid, head + names(name) + value)


def test_xattrs_are_set_read_listed_and_removed(guest: Guest, folder: Folder) -> None:
    path = folder.path / "x"
    path.touch()
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    for name, value in ((b"user.a", b"1"), (b"user.b", b""), (b"user.c", os.urandom(2000))):
        expect_success(set_xattr(guest, nodeid, name, value))
        assert os.getxattr(path, name) == value
        body = GETXATTR_IN.pack(4096, 0) + names(name)
        assert guest.call(Op.GETXATTR, nodeid, body) == value
        size = guest.call(Op.GETXATTR, nodeid, GETXATTR_IN.pack(0, 0) + names(name), room=8)
        assert GETXATTR_IN.unpack(size)[0] == len(value)
    body = GETXATTR_IN.pack(1999, 0) + names(b"user.c")
    expect(errno.ERANGE, guest.ask(Op.GETXATTR, nodeid, body))
    listed = guest.call(Op.LISTXATTR, nodeid, GETXATTR_IN.pack(4096, 0))
    assert sorted(listed.split(b"\0")) == [b"", b"user.a", b"user.b", b"user.c"]
    size = guest.call(Op.LISTXATTR, nodeid, GETXATTR_IN.pack(0, 0), room=8)
    assert GETXATTR_IN.unpack(size)[0] >= len(listed)
    expect(errno.ERANGE, guest.ask(Op.LISTXATTR, nodeid, GETXATTR_IN.pack(3, 0)))
    guest.call(Op.REMOVEXATTR, nodeid, names(b"user.a"))
    expect(errno.ENODATA, guest.ask(Op.REMOVEXATTR, nodeid, names(b"user.a")))
    expect(errno.ENODATA, guest.ask(Op.GETXATTR, nodeid, GETXATTR_IN.pack(9, 0) + b"user.a\0"))
    assert "user.a" not in os.listxattr(path)
    expect(errno.EEXIST, set_xattr(guest, nodeid, b"user.b", b"", os.XATTR_CREATE))
    expect(errno.ENODATA, set_xattr(guest, nodeid, b"user.d", b"", os.XATTR_REPLACE))


def expect_success(reply: Reply) -> None:
    assert reply.error == 0, errno.errorcode[reply.error]


def test_setxattr_of_a_guest_without_setxattr_ext(guest: Guest, folder: Folder) -> None:
    guest.init(flags=LINUX_FLAGS & ~SETXATTR_EXT)
    nodeid = guest.lookup(ROOT, folder.name).nodeid
    body = SETXATTR_COMPAT_IN.pack(5, 0) + names(b"user.old") + b"value"
    guest.call(Op.SETXATTR, nodeid, body)
    assert os.getxattr(folder.path, "user.old") == b"value"


def test_xattrs_of_what_cannot_be_opened(guest: Guest, folder: Folder) -> None:
    (folder.path / "link").symlink_to("nowhere")
    nodeid = guest.lookup(folder.nodeid, b"link").nodeid
    assert guest.ask(Op.LISTXATTR, nodeid, GETXATTR_IN.pack(4096, 0)) == Reply(0, b"")
    body = GETXATTR_IN.pack(9, 0) + names(b"security.none")
    expect(errno.ENODATA, guest.ask(Op.GETXATTR, nodeid, body))


# Locks.

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
FLOCK = 1


def lock(
    guest: Guest, op: int, nodeid: int, fh: int, owner: int, kind: int, *, flock: bool = False
) -> Reply:
    body = LK_IN.pack(fh, owner, 0, (1 << 63) - 1, kind, os.getpid(), FLOCK * flock, 0)
    return guest.ask(op, nodeid, body, queue=1 + owner % QUEUES)


@pytest.mark.parametrize("flock", [False, True])
def test_locks_exclude_each_other_and_the_host(guest: Guest, folder: Folder, flock: bool) -> None:
    entry, one = guest.create(folder.nodeid, b"x")
    two = guest.open(entry.nodeid)
    expect_success(lock(guest, Op.SETLK, entry.nodeid, one, 1, F_WRLCK, flock=flock))
    expect(errno.EAGAIN, lock(guest, Op.SETLK, entry.nodeid, two, 2, F_RDLCK, flock=flock))
    with (folder.path / "x").open("r+") as host:
        # The daemon's record locks are open-file-description locks: lockf on the host sees them.
        with pytest.raises(BlockingIOError):
            (fcntl.flock if flock else fcntl.lockf)(host, fcntl.LOCK_EX | fcntl.LOCK_NB)
        expect_success(lock(guest, Op.SETLK, entry.nodeid, one, 1, F_UNLCK, flock=flock))
        (fcntl.flock if flock else fcntl.lockf)(host, fcntl.LOCK_EX | fcntl.LOCK_NB)
        expect(errno.EAGAIN, lock(guest, Op.SETLK, entry.nodeid, two, 2, F_WRLCK, flock=flock))


def test_getlk_tells_who_is_in_the_way(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    body = LK_IN.pack(fh, 1, 100, 199, F_WRLCK, 1, 0, 0)
    guest.call(Op.SETLK, entry.nodeid, body)
    body = LK_IN.pack(fh, 2, 150, 160, F_RDLCK, 2, 0, 0)
    start, end, kind, _ = LK_OUT.unpack(guest.call(Op.GETLK, entry.nodeid, body, room=24))
    assert (start, end, kind) == (100, 199, F_WRLCK)
    body = LK_IN.pack(fh, 2, 200, 300, F_RDLCK, 2, 0, 0)
    assert LK_OUT.unpack(guest.call(Op.GETLK, entry.nodeid, body, room=24))[2] == F_UNLCK


def test_flush_drops_the_owners_record_locks(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    expect_success(lock(guest, Op.SETLK, entry.nodeid, fh, 1, F_WRLCK))
    expect(errno.EAGAIN, lock(guest, Op.SETLK, entry.nodeid, fh, 2, F_WRLCK))
    guest.call(Op.FLUSH, entry.nodeid, FLUSH_IN.pack(fh, 0, 0, 1))
    expect_success(lock(guest, Op.SETLK, entry.nodeid, fh, 2, F_WRLCK))


def test_setlkw_waits_without_holding_anything_up(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    expect_success(lock(guest, Op.SETLK, entry.nodeid, fh, 1, F_WRLCK))
    body = LK_IN.pack(fh, 2, 0, (1 << 63) - 1, F_WRLCK, 1, 0, 0)
    waiting = guest.submit(Op.SETLKW, entry.nodeid, body)
    with pytest.raises(NoReplyError):
        guest.finish(waiting, 0.2)
    for queue in range(1, QUEUES + 1):
        guest.lookup(folder.nodeid, b"x", queue=queue)
    expect_success(lock(guest, Op.SETLK, entry.nodeid, fh, 1, F_UNLCK))
    expect_success(guest.finish(waiting))


@pytest.mark.parametrize("others", [0, 100])
def test_a_waiting_setlkw_is_interrupted(guest: Guest, folder: Folder, others: int) -> None:
    """The interrupt works even when many more interrupts come before the worker looks at them."""
    entry, fh = guest.create(folder.nodeid, b"x")
    expect_success(lock(guest, Op.SETLK, entry.nodeid, fh, 1, F_WRLCK))
    body = LK_IN.pack(fh, 2, 0, (1 << 63) - 1, F_WRLCK, 1, 0, 0)
    waiting = guest.submit(Op.SETLKW, entry.nodeid, body, queue=2)
    guest.getattr(entry.nodeid)
    interrupted = [waiting.unique, *range(1 << 40, (1 << 40) + others)]
    sent = [
        guest.submit(Op.INTERRUPT, 0, U64.pack(unique), queue=0, kick=False)
        for unique in interrupted
    ]
    guest.frontend.rings[0].kick()
    expect(errno.EINTR, guest.finish(waiting))
    for pending in sent:
        guest.finish(pending)


# The remaining ops.


def test_lseek_finds_data_and_holes(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    guest.write(entry.nodeid, fh, 1 << 20, b"data")

    def seek(offset: int, whence: int) -> int:
        body = LSEEK_IN.pack(fh, offset, whence, 0)
        return int(U64.unpack(guest.call(Op.LSEEK, entry.nodeid, body, room=8))[0])

    assert seek(0, os.SEEK_DATA) == 1 << 20
    assert seek(0, os.SEEK_HOLE) == 0
    assert seek(1 << 20, os.SEEK_HOLE) == (1 << 20) + 4
    body = LSEEK_IN.pack(fh, 2 << 20, os.SEEK_DATA, 0)
    expect(errno.ENXIO, guest.ask(Op.LSEEK, entry.nodeid, body, room=8))


def test_fallocate_allocates_and_punches(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    path = folder.path / "x"
    guest.call(Op.FALLOCATE, entry.nodeid, FALLOCATE_IN.pack(fh, 0, 1 << 20, 0, 0))
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks * 512 >= 1 << 20
    guest.call(Op.FALLOCATE, entry.nodeid, FALLOCATE_IN.pack(fh, 0, 1 << 19, 3, 0))
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks * 512 < 1 << 20
    body = FALLOCATE_IN.pack(fh, 0, 0, 0, 0)
    expect(errno.EINVAL, guest.ask(Op.FALLOCATE, entry.nodeid, body))
    for mode in (8, 32):  # FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE
        body = FALLOCATE_IN.pack(fh, 0, 4096, mode, 0)
        expect(errno.EOPNOTSUPP, guest.ask(Op.FALLOCATE, entry.nodeid, body))


@pytest.mark.parametrize("op", [Op.COPY_FILE_RANGE, Op.COPY_FILE_RANGE_64])
def test_copy_file_range_copies(guest: Guest, folder: Folder, op: Op) -> None:
    data = os.urandom(100_000)
    one, from_fh = guest.create(folder.nodeid, b"from")
    two, to_fh = guest.create(folder.nodeid, b"to")
    (folder.path / "from").write_bytes(data)
    body = COPY_IN.pack(from_fh, 100, two.nodeid, to_fh, 7, 99_000, 0)
    reply = guest.call(op, one.nodeid, body, room=8, queue=QUEUES)
    copied = struct.unpack("<Q" if op == Op.COPY_FILE_RANGE_64 else "<I4x", reply)[0]
    assert copied == 99_000
    assert (folder.path / "to").read_bytes() == bytes(7) + data[100:][:99_000]
    body = COPY_IN.pack(from_fh, 0, one.nodeid, to_fh, 0, 10, 0)
    expect(errno.EBADF, guest.ask(op, one.nodeid, body, room=8))


def test_tmpfile_has_no_name_until_it_is_linked(guest: Guest, folder: Folder) -> None:
    body = CREATE_IN.pack(os.O_RDWR, 0o100640, 0, 0) + names(b"#tmp")
    data = guest.call(Op.TMPFILE, folder.nodeid, body, room=144, ids=(5, 6))
    entry, fh = Entry.parse(data), OPEN_OUT.unpack_from(data, 128)[0]
    attr = entry.attr
    assert (attr.mode, attr.nlink, attr.owner) == (0o100640, 0, (5, 6))
    guest.write(entry.nodeid, fh, 0, b"hidden", queue=2)
    assert list(folder.path.iterdir()) == []
    guest.call(Op.LINK, folder.nodeid, LINK_IN.pack(entry.nodeid) + names(b"shown"))
    guest.release(entry.nodeid, fh)
    assert (folder.path / "shown").read_bytes() == b"hidden"
    assert guest.getattr(entry.nodeid).nlink == 1


def test_ioctl_reads_inode_flags_and_knows_no_terminals(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    getflags = 0x80086601
    body = IOCTL_IN.pack(fh, 0, getflags, 0, 0, 8)
    reply = guest.ask(Op.IOCTL, entry.nodeid, body, room=24)
    assert reply.error in (0, errno.ENOTTY, errno.ENOSYS)
    if reply.error == 0:
        result, _, _, _ = IOCTL_OUT.unpack_from(reply.data)
        assert result == 0
        with (folder.path / "x").open() as host:
            expected = fcntl.ioctl(host, getflags, bytes(8))
        assert reply.data[16:20] == expected[:4]
    body = IOCTL_IN.pack(fh, 0, termios.TCGETS, 0, 0, 60)
    assert guest.ask(Op.IOCTL, entry.nodeid, body, room=76).error in (errno.ENOTTY, errno.ENOSYS)


@pytest.mark.parametrize("op", [Op.BMAP, Op.POLL, Op.SETUPMAPPING, Op.REMOVEMAPPING])
def test_what_is_not_served_says_enosys(guest: Guest, folder: Folder, op: Op) -> None:
    expect(errno.ENOSYS, guest.ask(op, folder.nodeid, bytes(64)))


def test_an_interrupt_of_nothing_has_no_effect(guest: Guest, folder: Folder) -> None:
    guest.ask(Op.INTERRUPT, 0, U64.pack(12345))
    guest.ask(Op.INTERRUPT, 0, U64.pack(12345), queue=0)
    guest.getattr(folder.nodeid)
