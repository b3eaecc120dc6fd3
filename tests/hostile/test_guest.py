# SPDX-License-Identifier: Apache-2.0
"""A hostile guest: whatever it writes, no process of the daemon ends and the next request works."""

import errno
import itertools
import os
import stat
import struct
from collections.abc import Callable

import pytest

from tests.sandbox_modes import in_every_mode

from .conftest import Folder
from .daemon import Daemon
from .driver import Segment
from .fuse import (
    BATCH_FORGET_IN,
    COPY_IN,
    CREATE_IN,
    EXT_GROUPS,
    FALLOCATE_IN,
    FLUSH_IN,
    FORGET_IN,
    FORGET_ONE,
    FSYNC_IN,
    GETXATTR_IN,
    IN_HEADER,
    LINK_IN,
    LSEEK_IN,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_IN,
    OUT_HEADER,
    RELEASE_IN,
    RENAME2_IN,
    RENAME_IN,
    ROOT,
    SETXATTR_IN,
    Entry,
    Guest,
    Op,
    expect,
    names,
    read_in,
    write_in,
)

STALE = (errno.ESTALE, errno.ENOENT, errno.EBADF)
U64_MAX = (1 << 64) - 1


pytestmark = [pytest.mark.usefixtures("nobody_dies"), in_every_mode]


def send(guest: Guest, request: bytes, room: int, queue: int = 1) -> bytes:
    """Send a request of any bytes, with `room` writable bytes in all; return what was written
    there."""
    memory, ring = guest.memory, guest.frontend.rings[queue]
    gpa = memory.alloc(max(1, len(request)) + max(1, room))
    memory.write(gpa, request)
    segments = [Segment(gpa, len(request))] if request else []
    if room:
        segments.append(Segment(gpa + len(request), room, True))
    head = ring.submit(segments)
    ring.publish()
    ring.kick()
    used = ring.wait(head)
    assert used <= room
    return memory.read(gpa + len(request), used)


def header(op: int, nodeid: int = ROOT, length: int = IN_HEADER.size, extension: int = 0) -> bytes:
    return IN_HEADER.pack(length, op, 0xABCDEF, nodeid, 0, 0, 1, extension, 0)


def assert_refused(reply: bytes) -> None:
    """The request is returned without a reply, or its reply is an errno."""
    if reply:
        assert len(reply) == OUT_HEADER.size
        assert OUT_HEADER.unpack(reply)[1] < 0


# The bytes of requests.


@pytest.mark.parametrize("size", [1, 2, 4, 8, 10, 16, 24, 39])
def test_a_truncated_header(guest: Guest, size: int) -> None:
    for op in (Op.GETATTR, Op.FORGET, Op.INIT, Op.READ):
        for room in (0, 8, 16, 200):
            assert_refused(send(guest, header(op)[:size], room))


def test_a_chain_without_a_readable_byte(guest: Guest) -> None:
    for room in (1, 15, 16, 4096):
        assert_refused(send(guest, b"", room))


@pytest.mark.parametrize("length", [0, 1, 39, 41, 55, 57, 4096, 1 << 31, (1 << 32) - 1])
def test_a_length_that_does_not_fit_the_chain(guest: Guest, length: int) -> None:
    """With `len` 41 and 55 the argument is cut short; 57 and more promise bytes that are not
    there."""
    assert_refused(send(guest, header(Op.GETATTR, length=length) + bytes(16), 200))
    assert_refused(send(guest, header(Op.LOOKUP, length=length) + bytes(16), 200))


SERVED = sorted({*Op} - {Op.INIT, Op.DESTROY})


def test_each_opcode_without_its_argument(guest: Guest, folder: Folder) -> None:
    for op, extra in itertools.product(SERVED, (0, 1, 7, 8, 15, 39)):
        request = header(op, folder.nodeid, IN_HEADER.size + extra) + b"\xff" * extra
        send(guest, request, 4096)
        send(guest, request, 0)


@pytest.mark.parametrize("room", [0, 1, 8, 15, 16, 17, 100])
def test_each_opcode_with_too_little_room_for_its_reply(
    guest: Guest, folder: Folder, room: int
) -> None:
    body = bytes(64) + names(b"a", b"b")
    for op in SERVED:
        request = header(op, folder.nodeid, IN_HEADER.size + len(body)) + body
        reply = send(guest, request, room)
        if len(reply) >= OUT_HEADER.size:
            assert OUT_HEADER.unpack_from(reply)[0] == len(reply)


@pytest.mark.parametrize("op", [0, 7, 19, 54, 63, 64, 100, 4096, 1 << 31, (1 << 32) - 1])
def test_an_unknown_opcode(guest: Guest, op: int) -> None:
    reply = send(guest, header(op, length=56) + bytes(16), 200)
    assert OUT_HEADER.unpack(reply) == (16, -errno.ENOSYS, 0xABCDEF)


def test_extension_areas_that_lie(guest: Guest, folder: Folder) -> None:
    body = MKDIR_IN.pack(0o755, 0) + names(b"x")
    for area, extlen in (
        (b"", 0xFFFF),
        (b"", 2),
        (struct.pack("<II", 8, EXT_GROUPS), 1),
        (struct.pack("<II", 0, EXT_GROUPS), 1),
        (struct.pack("<II", 7, EXT_GROUPS), 1),
        (struct.pack("<II", 1 << 31, EXT_GROUPS), 1),
        (struct.pack("<IIII", 16, EXT_GROUPS, 1 << 31, 0), 2),
        (struct.pack("<IIII", 16, EXT_GROUPS, 2, 0), 2),
        (struct.pack("<III", 144, EXT_GROUPS, 33) + bytes(132), 18),
    ):
        length = IN_HEADER.size + len(body) + len(area)
        request = header(Op.MKDIR, folder.nodeid, length, extlen) + body + area
        assert_refused(send(guest, request, 200))
    assert list(folder.path.iterdir()) == []


# Names.

BAD_NAMES = [
    b"",
    b"..",
    b".",
    b"/",
    b"a/b",
    b"../x",
    b"/tmp",
    b"x/",
    b"./x",
    b"x" * 256,
    b"x" * 5000,
]
# Each opcode that takes names, and the argument before the names; True: two names.
NAMED = {
    Op.MKDIR: (MKDIR_IN.pack(0o755, 0), False),
    Op.MKNOD: (MKNOD_IN.pack(stat.S_IFREG | 0o644, 0, 0, 0), False),
    Op.CREATE: (CREATE_IN.pack(os.O_CREAT | os.O_RDWR, 0o100644, 0, 0), False),
    Op.UNLINK: (b"", False),
    Op.RMDIR: (b"", False),
    Op.RENAME: (RENAME_IN.pack(ROOT), True),
    Op.RENAME2: (RENAME2_IN.pack(ROOT, 0, 0), True),
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_no_names(guest: Guest, folder: Folder, name: bytes) -> None:
    (folder.path / "victim").write_text("here")
    for op, (argument, two) in NAMED.items():
        for parts in ([name, b"new"], [b"victim", name]) if two else ([name],):
            reply = guest.ask(op, folder.nodeid, argument + names(*parts))
            assert reply.error in (errno.EINVAL, errno.ENOENT, errno.ENAMETOOLONG), op
    victim = guest.lookup(folder.nodeid, b"victim").nodeid
    assert guest.ask(Op.LINK, folder.nodeid, LINK_IN.pack(victim) + names(name)).error
    assert guest.ask(Op.SYMLINK, folder.nodeid, names(name, b"target")).error
    if name not in (b".", b".."):
        assert guest.ask(Op.LOOKUP, folder.nodeid, names(name)).error
    assert [path.name for path in folder.path.iterdir()] == ["victim"]


def test_names_without_an_end(guest: Guest, folder: Folder) -> None:
    (folder.path / "victim").write_text("here")
    for op, (argument, two) in NAMED.items():
        for tail in (b"victim", b"new") + ((b"victim\0", b"victim\0new") if two else ()):
            assert guest.ask(op, folder.nodeid, argument + tail).error, (op, tail)
    for tail in (b"", b"victim"):
        assert guest.ask(Op.LOOKUP, folder.nodeid, tail).error
        assert guest.ask(Op.REMOVEXATTR, folder.nodeid, tail).error
        assert guest.ask(Op.SYMLINK, folder.nodeid, b"link\0" + tail).error
    assert [path.name for path in folder.path.iterdir()] == ["victim"]


def test_xattrs_that_lie_about_their_size(guest: Guest, folder: Folder) -> None:
    for size in (5, 100, 65536, 65537, (1 << 32) - 1):
        body = SETXATTR_IN.pack(size, 0, 0, 0) + names(b"user.x") + b"1234"
        assert guest.ask(Op.SETXATTR, folder.nodeid, body).error
    body = SETXATTR_IN.pack(4, 0, 0, 0) + b"user.x"
    assert guest.ask(Op.SETXATTR, folder.nodeid, body).error
    assert os.listxattr(folder.path) == []
    for size in (1 << 20, (1 << 32) - 1):
        body = GETXATTR_IN.pack(size, 0)
        guest.ask(Op.LISTXATTR, folder.nodeid, body)
        guest.ask(Op.GETXATTR, folder.nodeid, body + names(b"user.x"))
        guest.ask(Op.GETXATTR, folder.nodeid, body + b"x" * 300)


# Node ids, lookup counts, open files.


def test_forget_of_more_than_was_looked_up(guest: Guest, folder: Folder) -> None:
    (folder.path / "x").touch()
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    guest.forget(nodeid, 2)
    guest.forget(nodeid, U64_MAX)
    assert guest.ask(Op.GETATTR, nodeid, bytes(16), room=104).error in STALE
    guest.forget(ROOT, U64_MAX)
    guest.forget(ROOT, U64_MAX)
    guest.getattr(ROOT)
    nodeid = guest.lookup(folder.nodeid, b"x").nodeid
    assert guest.getattr(nodeid).size == 0


@pytest.mark.parametrize("count", [0, 2, 3, 1000, 1 << 28, 1 << 31, (1 << 32) - 1])
def test_batch_forget_that_lies_about_its_count(guest: Guest, folder: Folder, count: int) -> None:
    for ones in (b"", FORGET_ONE.pack(folder.nodeid + (1 << 40), 1), bytes(15)):
        for queue in (0, 1):
            guest.ask(Op.BATCH_FORGET, 0, BATCH_FORGET_IN.pack(count, 0) + ones, queue=queue)
    assert guest.getattr(folder.nodeid)


def bad_nodeids(good: int) -> list[int]:
    made_up = [0, 2, 3, U64_MAX, 1 << 32, 1 << 63, (1 << 32) - 1, 0xDEAD << 32 | 1]
    near = [good ^ (1 << bit) for bit in (0, 1, 20, 31, 32, 33, 63)] + [good + (2 << 32)]
    return [nodeid for nodeid in made_up + near if nodeid not in (good, ROOT)]


# By opcode: an argument with which the op would do something.
ARGUMENTS: dict[int, bytes] = {
    Op.LOOKUP: names(b"x"),
    Op.GETATTR: bytes(16),
    Op.SETATTR: bytes(88),
    Op.READLINK: b"",
    Op.SYMLINK: names(b"x", b"y"),
    Op.MKNOD: NAMED[Op.MKNOD][0] + names(b"x"),
    Op.MKDIR: NAMED[Op.MKDIR][0] + names(b"x"),
    Op.UNLINK: names(b"x"),
    Op.RMDIR: names(b"x"),
    Op.RENAME: RENAME_IN.pack(ROOT) + names(b"x", b"y"),
    Op.LINK: LINK_IN.pack(ROOT) + names(b"x"),
    Op.OPEN: OPEN_IN.pack(os.O_RDWR, 0),
    Op.OPENDIR: OPEN_IN.pack(0, 0),
    Op.SETXATTR: SETXATTR_IN.pack(1, 0, 0, 0) + names(b"user.x") + b"1",
    Op.GETXATTR: GETXATTR_IN.pack(100, 0) + names(b"user.x"),
    Op.LISTXATTR: GETXATTR_IN.pack(100, 0),
    Op.REMOVEXATTR: names(b"user.x"),
    Op.CREATE: NAMED[Op.CREATE][0] + names(b"x"),
    Op.RENAME2: RENAME2_IN.pack(ROOT, 0, 0) + names(b"x", b"y"),
    Op.TMPFILE: CREATE_IN.pack(os.O_RDWR, 0o100644, 0, 0) + names(b"x"),
    Op.STATX: bytes(24),
}


def test_node_ids_that_were_never_given_out(guest: Guest, folder: Folder) -> None:
    for nodeid, (op, body) in itertools.product(bad_nodeids(folder.nodeid), ARGUMENTS.items()):
        assert guest.ask(op, nodeid, body).error in STALE, (op, hex(nodeid))
    for nodeid in bad_nodeids(folder.nodeid):
        guest.forget(nodeid)
        body = RENAME_IN.pack(nodeid) + names(b"x", b"y")
        assert guest.ask(Op.RENAME, folder.nodeid, body).error
        assert guest.ask(Op.LINK, folder.nodeid, LINK_IN.pack(nodeid) + names(b"z")).error
    assert list(folder.path.iterdir()) == []
    assert guest.getattr(folder.nodeid)


# Each opcode that takes an open file, as a function of the file's number.
ON_FILES: dict[int, Callable[[int], bytes]] = {
    Op.READ: lambda fh: read_in(fh=fh, size=10),
    Op.WRITE: lambda fh: write_in(fh=fh, size=1) + b"!",
    Op.FSYNC: lambda fh: FSYNC_IN.pack(fh, 0, 0),
    Op.FALLOCATE: lambda fh: FALLOCATE_IN.pack(fh, 0, 10, 0, 0),
    Op.LSEEK: lambda fh: LSEEK_IN.pack(fh, 0, 0, 0),
    Op.READDIR: lambda fh: read_in(fh=fh, size=4096),
    Op.READDIRPLUS: lambda fh: read_in(fh=fh, size=4096),
    Op.FSYNCDIR: lambda fh: FSYNC_IN.pack(fh, 0, 0),
}
DIR_OPS = (Op.READDIR, Op.READDIRPLUS, Op.FSYNCDIR)


def test_open_files_of_another_inode_or_of_none(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    (folder.path / "x").write_text("secret")
    daemon.give(folder.path / "x")
    x = guest.lookup(folder.nodeid, b"x").nodeid
    y, y_fh = guest.create(folder.nodeid, b"y")
    x_fh = guest.open(x)
    dir_fh = guest.open(folder.nodeid, os.O_RDONLY, op=Op.OPENDIR)
    gone = guest.open(x)
    guest.release(x, gone)
    for op, argument in ON_FILES.items():
        wrong = [(x, y_fh), (y.nodeid, x_fh), (x, gone), (x, dir_fh), (folder.nodeid, x_fh)]
        wrong += [(x, fh) for fh in bad_nodeids(x_fh)] + [(U64_MAX, U64_MAX), (0, 0)]
        wrong += [(folder.nodeid, fh) for fh in bad_nodeids(dir_fh)]
        wrong += [(folder.nodeid, dir_fh)] if op not in DIR_OPS else [(x, x_fh)]
        for nodeid, fh in wrong:
            if op == Op.FSYNC and (nodeid, fh) == (folder.nodeid, dir_fh):
                continue
            if op == Op.FSYNCDIR and (nodeid, fh) == (x, x_fh):
                continue
            assert guest.ask(op, nodeid, argument(fh)).error, (op, hex(nodeid), hex(fh))
    body = COPY_IN.pack(x_fh, 0, x, y_fh, 0, 6, 0)
    expect(errno.EBADF, guest.ask(Op.COPY_FILE_RANGE, x, body))
    assert (folder.path / "x").read_text() == "secret"
    assert guest.read(x, x_fh, 0, 10) == b"secret"


def test_release_of_what_is_not_open(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    other, _ = guest.create(folder.nodeid, b"y")
    for op, number in itertools.product(
        (Op.RELEASE, Op.RELEASEDIR, Op.FLUSH), [*bad_nodeids(fh), fh]
    ):
        body = (
            FLUSH_IN.pack(number, 0, 0, 0) if op == Op.FLUSH else RELEASE_IN.pack(number, 0, 0, 0)
        )
        guest.ask(op, other.nodeid, body)
    assert guest.write(entry.nodeid, fh, 0, b"still open") == 10
    for _ in range(3):
        guest.ask(Op.RELEASE, entry.nodeid, RELEASE_IN.pack(fh, 0, 0, 0))
    guest.getattr(entry.nodeid)


def test_an_open_file_outlives_its_forgotten_inode(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    guest.forget(entry.nodeid, U64_MAX)
    body = read_in(fh=fh, size=10)
    assert guest.ask(Op.READ, entry.nodeid, body).error in (0, *STALE)
    guest.ask(Op.RELEASE, entry.nodeid, RELEASE_IN.pack(fh, 0, 0, 0))
    guest.lookup(folder.nodeid, b"x")


def test_creating_what_exists_in_every_way(guest: Guest, folder: Folder) -> None:
    guest.mkdir(folder.nodeid, b"dir")
    (folder.path / "file").write_text("old")
    (folder.path / "link").symlink_to("/etc/passwd")
    (folder.path / "dangling").symlink_to("nowhere")
    os.mkfifo(folder.path / "fifo")
    for name, flags in itertools.product(
        (b"dir", b"file", b"link", b"dangling", b"fifo"),
        (0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_RDWR, os.O_CREAT | os.O_PATH),
    ):
        body = CREATE_IN.pack(flags, 0o100644, 0, 0) + names(name)
        reply = guest.ask(Op.CREATE, folder.nodeid, body)
        if name != b"file" or flags & os.O_EXCL:
            assert reply.error, (name, flags)
    assert not (folder.path / "nowhere").exists()
    assert (folder.path / "file").read_text() == "old"


def test_open_with_every_flag(guest: Guest, folder: Folder) -> None:
    (folder.path / "file").write_text("old")
    os.mkfifo(folder.path / "fifo")
    for name in (b"file", b"fifo"):
        nodeid = guest.lookup(folder.nodeid, name).nodeid
        for bit in range(32):
            for op in (Op.OPEN, Op.OPENDIR):
                guest.ask(op, nodeid, OPEN_IN.pack(1 << bit, 0xFFFF_FFFF))
        guest.ask(Op.OPEN, nodeid, OPEN_IN.pack(0xFFFF_FFFF, 0xFFFF_FFFF))
    for bit in range(32):
        guest.ask(Op.OPENDIR, folder.nodeid, OPEN_IN.pack(1 << bit, 0))
        body = CREATE_IN.pack(1 << bit, 0o100644, 0, 0) + names(b"new%d" % bit)
        guest.ask(Op.CREATE, folder.nodeid, body)
        guest.ask(Op.TMPFILE, folder.nodeid, body)


def test_numbers_at_their_limits(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    guest.write(entry.nodeid, fh, 0, b"data")
    limits = (0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, U64_MAX)
    for offset, size in itertools.product(limits, limits[:5]):
        guest.ask(Op.READ, entry.nodeid, read_in(fh=fh, offset=offset, size=size))
        body = write_in(fh=fh, offset=offset, size=size, write_flags=0xFFFF_FFFF, flags=0xFFFF_FFFF)
        assert guest.ask(Op.WRITE, entry.nodeid, body + b"1234").error or size <= 4
        guest.ask(Op.READDIR, folder.nodeid, body)
    for offset, whence in itertools.product(limits, (0, 1, 2, 3, 4, 5, (1 << 32) - 1)):
        guest.ask(Op.LSEEK, entry.nodeid, LSEEK_IN.pack(fh, offset, whence, 0))
    for offset in limits:
        body = COPY_IN.pack(fh, offset, entry.nodeid, fh, offset, U64_MAX, U64_MAX)
        guest.ask(Op.COPY_FILE_RANGE, entry.nodeid, body)
        guest.ask(Op.FALLOCATE, entry.nodeid, FALLOCATE_IN.pack(fh, 1 << 63, offset, 0xFFFF, 0))
    assert guest.ask(Op.READ, entry.nodeid, read_in(fh=fh, size=4)).error == 0


def test_ids_that_are_no_ids(guest: Guest, folder: Folder) -> None:
    nobody = (1 << 32) - 1
    for ids in ((nobody, 0), (0, nobody), (nobody, nobody)):
        for op, (argument, two) in NAMED.items():
            guest.ask(op, folder.nodeid, argument + names(*[b"x", b"y"][: 1 + two]), ids=ids)
    guest.call(Op.MKDIR, folder.nodeid, MKDIR_IN.pack(0o755, 0) + names(b"after"))
    assert (folder.path / "after").stat().st_uid == folder.path.stat().st_uid


# Requests in an unexpected order.


def test_a_second_init_makes_everything_stale(guest: Guest, folder: Folder) -> None:
    entry, fh = guest.create(folder.nodeid, b"x")
    for queue in (1, 2, 3):
        guest.init(queue=queue)
        assert guest.ask(Op.GETATTR, folder.nodeid, bytes(16), room=104).error in STALE
        body = read_in(fh=fh, size=10)
        assert guest.ask(Op.READ, entry.nodeid, body).error
    nodeid = guest.lookup(ROOT, folder.name).nodeid
    assert guest.lookup(nodeid, b"x").attr.ino == entry.attr.ino


def test_destroy_and_init_while_requests_run(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    (folder.path / "x").write_bytes(bytes(100_000))
    daemon.give(folder.path / "x")
    for turn in range(20):
        nodeid = guest.lookup(guest.lookup(ROOT, folder.name).nodeid, b"x").nodeid
        fh = guest.open(nodeid)
        body = read_in(fh=fh, size=60_000)
        waiting = [
            guest.submit(Op.READ, nodeid, body, room=60_000, queue=1 + i % 4) for i in range(16)
        ]
        if turn % 2:
            guest.call(Op.DESTROY, 0, queue=1 + turn % 4)
        guest.init(queue=1 + turn % 3)
        for pending in waiting:
            assert guest.finish(pending).error in (0, errno.EIO, *STALE)


def test_opcodes_on_the_hiprio_queue(guest: Guest, folder: Folder) -> None:
    for op, body in ARGUMENTS.items():
        guest.ask(op, folder.nodeid, body, queue=0)
    guest.init(queue=0)


def test_lookups_that_are_never_forgotten(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    """A guest may use up its inodes and open files, but not the daemon's: the next session has all
    of them again."""
    for i in range(300):
        guest.create(folder.nodeid, b"%d" % i)
    before = max(daemon.fd_counts().values())
    guest.init()
    for queue in range(5):
        guest.ask(Op.STATFS, queue=queue)
    assert before >= 300
    for _ in range(100):
        guest.ask(Op.STATFS, queue=2)
        if max(daemon.fd_counts().values()) < before - 250:
            return
    raise AssertionError("fds of the old session stay open")


def test_too_many_open_files(guest: Guest, folder: Folder) -> None:
    """When the guest opens all that it can, each reply is success or the errno of too many open
    files."""
    entry, _ = guest.create(folder.nodeid, b"x")
    pending = []
    for i in range(3000):
        body = OPEN_IN.pack(os.O_RDONLY, 0)
        pending.append(guest.submit(Op.OPEN, entry.nodeid, body, room=16, queue=1 + i % 4))
        if len(pending) == 100:
            assert {guest.finish(p).error for p in pending} <= {0, errno.EMFILE, errno.ENFILE}
            pending.clear()
    guest.init()


def test_entries_survive_a_storm_of_lookups_and_forgets(guest: Guest, folder: Folder) -> None:
    for i in range(20):
        (folder.path / f"{i}").touch()
    for _ in range(30):
        waiting = [
            guest.submit(Op.LOOKUP, folder.nodeid, names(b"%d" % i), room=128, queue=1 + i % 4)
            for i in range(20)
        ]
        for i, pending in enumerate(waiting):
            nodeid = Entry.parse(guest.finish(pending).data).nodeid
            guest.submit(Op.FORGET, nodeid, FORGET_IN.pack(1 + i % 2), queue=i % 5)
            guest.submit(Op.GETATTR, nodeid, bytes(16), room=104, queue=1 + i % 4)
    guest.frontend.rings[1].reap()
