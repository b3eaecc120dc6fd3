# SPDX-License-Identifier: Apache-2.0
"""Security labels: on a file before any process can find it; nothing is left when a worker dies."""

import errno
import os
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from .conftest import QUEUES, Folder, Line
from .daemon import Daemon, wait_until
from .fuse import (
    CREATE_IN,
    INIT_EXT,
    LINK_IN,
    LINUX_FLAGS,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_OUT,
    ROOT,
    Entry,
    Guest,
    Op,
    Pending,
    expect,
    names,
)
from .test_recovery import Killer

SECURITY_CTX = 1 << 32
MINE = "security.mine"  # no security module owns this name: it is an attribute like any other
VALUE = b"guest_u:object_r:thing_t:s0"
UMASK = 0o022

FILE, DIR = 0o100000, 0o040000
# Opcode, the argument and what follows the name, and the type of file that is created.
CREATIONS = {
    "create": (Op.CREATE, CREATE_IN.pack(os.O_CREAT | os.O_RDWR, 0o100666, UMASK, 0), b"", FILE),
    "create-excl": (
        Op.CREATE,
        CREATE_IN.pack(os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o100666, UMASK, 0),
        b"",
        FILE,
    ),
    "mkdir": (Op.MKDIR, MKDIR_IN.pack(0o777, UMASK), b"", DIR),
    "mknod": (Op.MKNOD, MKNOD_IN.pack(0o100666, 0, UMASK, 0), b"", FILE),
    "fifo": (Op.MKNOD, MKNOD_IN.pack(0o010666, 0, UMASK, 0), b"", 0o010000),
    "device": (Op.MKNOD, MKNOD_IN.pack(0o020666, 0x103, UMASK, 0), b"", 0o020000),
    "symlink": (Op.SYMLINK, b"", names(b"target"), 0o120000),
}
EVERY = pytest.mark.parametrize("what", sorted(CREATIONS))


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    options = ("--keep-listening", "--security-label=auto", "--posix-acl=auto")
    with Daemon(*options, "--modcaps=+sys_admin") as running:
        yield running


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def secctx(*labels: tuple[bytes, bytes]) -> bytes:
    """The extension: a header that counts labels, then for each label its size, name and value."""
    body = b"".join(
        padded(struct.pack("<II", len(value), 0) + names(name) + value) for name, value in labels
    )
    return struct.pack("<II", 8 + len(body), len(labels)) + body


LABEL = secctx((MINE.encode(), VALUE))


def ids_of(what: str) -> tuple[int, int]:
    return (0, 0) if what == "device" else (1000, 1001)


def submit(
    guest: Guest, what: str, parent: int, name: bytes, extension: bytes = LABEL, queue: int = 1
) -> Pending:
    op, argument, rest, _ = CREATIONS[what]
    body = argument + names(name) + rest
    return guest.submit(
        op, parent, body, room=144, ids=ids_of(what), extension=extension, queue=queue
    )


def create(guest: Guest, what: str, parent: int, name: bytes, extension: bytes = LABEL) -> Entry:
    reply = guest.finish(submit(guest, what, parent, name, extension))
    if reply.error:
        raise OSError(reply.error, what)
    return Entry.parse(reply.data)


def label(path: Path) -> bytes:
    return os.getxattr(path, MINE, follow_symlinks=False)


@EVERY
def test_a_new_file_has_its_label(guest: Guest, folder: Folder, what: str) -> None:
    kind = CREATIONS[what][3]
    assert guest.flags & SECURITY_CTX
    entry = create(guest, what, folder.nodeid, b"x")
    path = folder.path / "x"
    assert label(path) == VALUE
    st = path.lstat()
    mode = {FILE: 0o644, DIR: 0o755}.get(kind, 0o777 if what == "symlink" else 0o644)
    assert (stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode)) == (kind, mode)
    assert (st.st_uid, st.st_gid, entry.attr.ino) == (*ids_of(what), st.st_ino)
    assert os.listdir(folder.path) == ["x"]  # noqa: PTH208 - the whole listing
    assert what != "symlink" or path.readlink() == Path("target")
    assert what != "device" or os.major(st.st_rdev) == 1


@EVERY
def test_a_name_that_is_taken_stays_what_it_is(guest: Guest, folder: Folder, what: str) -> None:
    path = folder.path / "x"
    path.write_text("old")
    reply = guest.finish(submit(guest, what, folder.nodeid, b"x"))
    assert reply.error == (0 if what == "create" else errno.EEXIST)
    assert path.read_text() == "old"
    assert MINE not in os.listxattr(path)
    assert len(list(folder.path.iterdir())) == 1


@EVERY
def test_the_layout_before_there_were_extensions(guest: Guest, folder: Folder, what: str) -> None:
    guest.init(minor=37)
    parent = guest.lookup(ROOT, folder.name).nodeid
    op, argument, rest, _ = CREATIONS[what]
    for name in (b"x", b"longer name"):
        guest.call(op, parent, argument + names(name) + rest + LABEL)
        assert label(folder.path / name.decode()) == VALUE
    guest.call(op, parent, argument + names(b"none") + rest + secctx())
    assert os.listxattr(folder.path / "none", follow_symlinks=False) == []
    expect(errno.EINVAL, guest.ask(op, parent, argument + names(b"y") + rest + LABEL[:-4]))


@EVERY
def test_without_a_label_in_the_request(guest: Guest, folder: Folder, what: str) -> None:
    create(guest, what, folder.nodeid, b"x", secctx())
    create(guest, what, folder.nodeid, b"y", b"")
    for name in "xy":
        assert os.listxattr(folder.path / name, follow_symlinks=False) == []


def facts(path: Path) -> tuple[object, ...]:
    """The facts of a file that it inherits from its directory."""
    st = path.lstat()
    acls = {
        name: os.getxattr(path, name)
        for name in os.listxattr(path, follow_symlinks=False)
        if name != MINE
    }
    return st.st_mode, st.st_uid, st.st_gid, acls


@EVERY
def test_a_labelled_file_inherits_like_any_other(guest: Guest, folder: Folder, what: str) -> None:
    os.chown(folder.path, 0, 1001)
    folder.path.chmod(0o2777)
    subprocess.run(["setfacl", "-d", "-m", "u:7:rwx,g::rwx,o::-", folder.path], check=True)
    create(guest, what, folder.nodeid, b"x")
    create(guest, what, folder.nodeid, b"y", b"")
    assert label(folder.path / "x") == VALUE
    assert facts(folder.path / "x") == facts(folder.path / "y")
    assert what == "symlink" or "system.posix_acl_access" in os.listxattr(folder.path / "x")


def test_several_labels_and_groups_together(guest: Guest, folder: Folder) -> None:
    groups = struct.pack("<IIII", 16, 32, 1, 1002)
    both = secctx((MINE.encode(), VALUE), (b"security.other", b""))
    for name, extension in ((b"x", groups + both), (b"y", both + groups)):
        create(guest, "mkdir", folder.nodeid, name, extension)
        assert label(folder.path / name.decode()) == VALUE
        assert os.getxattr(folder.path / name.decode(), "security.other") == b""


@EVERY
@pytest.mark.parametrize(
    "extension",
    [
        secctx((b"user.x", b"v")),
        secctx((b"trusted.x", b"v")),
        secctx((b"system.posix_acl_access", b"v")),
        secctx((b"security.", b"v")),
        secctx((b"", b"v")),
        secctx((b"security." + b"x" * 247, b"v")),
        struct.pack("<II", 8, 1),
        struct.pack("<II", 8, 31),
        struct.pack("<IIII", 16, 1, 0, 0),
        struct.pack("<II", 40, 1) + struct.pack("<II", 0xFFFF_FFFF, 0) + b"security.x\0".ljust(24),
        struct.pack("<II", 40, 1) + struct.pack("<II", 14, 0) + b"security.x\0".ljust(24),
        struct.pack("<II", 32, 1) + struct.pack("<II", 0, 0) + b"security.xyzabcd",
        struct.pack("<II", 24, 2) + struct.pack("<II", 0, 0) + b"securit\0",
    ],
)
def test_a_label_that_is_none_creates_nothing(
    guest: Guest, folder: Folder, what: str, extension: bytes
) -> None:
    expect(errno.EINVAL, guest.finish(submit(guest, what, folder.nodeid, b"x", extension)))
    assert list(folder.path.iterdir()) == []


def test_a_guest_that_did_not_agree_sets_none(guest: Guest, folder: Folder) -> None:
    guest.init(flags=LINUX_FLAGS & ~SECURITY_CTX)
    create(guest, "mkdir", guest.lookup(ROOT, folder.name).nodeid, b"x")
    assert os.listxattr(folder.path / "x") == []
    guest.init(flags=LINUX_FLAGS & ~INIT_EXT)
    assert not guest.flags & SECURITY_CTX


def test_an_unnamed_file_has_its_label_when_it_gets_a_name(guest: Guest, folder: Folder) -> None:
    body = CREATE_IN.pack(os.O_RDWR, 0o100644, 0, 0) + names(b"/")
    data = guest.call(Op.TMPFILE, folder.nodeid, body, room=144, extension=LABEL)
    guest.call(Op.LINK, folder.nodeid, LINK_IN.pack(Entry.parse(data).nodeid) + names(b"x"))
    assert label(folder.path / "x") == VALUE


def test_a_labelled_file_is_open_and_can_be_written(guest: Guest, folder: Folder) -> None:
    data = guest.finish(submit(guest, "create", folder.nodeid, b"x")).data
    nodeid, fh = Entry.parse(data).nodeid, OPEN_OUT.unpack_from(data, 128)[0]
    guest.write(nodeid, fh, 0, b"data")
    guest.release(nodeid, fh)
    assert (folder.path / "x").read_bytes() == b"data"
    assert guest.getattr(nodeid).size == 4


# A process on the host that looks at the directory during a creation.


class Watcher(threading.Thread):
    """Lists a directory again and again, and notes each file that it finds without a label."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._ended = threading.Event()
        self.bare: set[str] = set()
        self.looks = 0

    def run(self) -> None:
        while not self._ended.is_set():
            for path in self._path.iterdir():
                try:
                    names_found = os.listxattr(path, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if MINE not in names_found:
                    self.bare.add(path.name)
            self.looks += 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


@EVERY
def test_no_name_is_seen_without_its_label(guest: Guest, folder: Folder, what: str) -> None:
    with Watcher(folder.path) as watcher:
        for number in range(150):
            create(guest, what, folder.nodeid, b"%d" % number)
            assert label(folder.path / str(number)) == VALUE
            (folder.path / str(number)).rmdir() if what == "mkdir" else (
                folder.path / str(number)
            ).unlink()
    assert watcher.looks
    if CREATIONS[what][3] == FILE:
        assert watcher.bare == set()
    else:  # a host process may see the staged name, but never the final name
        assert all(name.startswith(".vfsd-") for name in watcher.bare)


def test_a_staged_name_is_not_listed(guest: Guest, folder: Folder) -> None:
    """Such a name stays behind when a guest resets its ring while the worker is dead; listings
    leave it out."""
    with Watcher(folder.path) as watcher:
        deadline = time.monotonic() + 20
        while not watcher.bare and time.monotonic() < deadline:
            create(guest, "mkdir", folder.nodeid, b"x")
            (folder.path / "x").rmdir()
    staged = next(iter(watcher.bare))
    prefix = staged.rsplit("-", 2)[0]
    for number in range(2000):  # a directory with more of these names than one read returns
        (folder.path / f"{prefix}-{number}-0").touch()
    for plus in (False, True):
        assert {e.name for e in guest.list(folder.nodeid, plus=plus)} == {b".", b".."}
    (folder.path / "real").touch()
    assert {e.name for e in guest.list(folder.nodeid)} == {b".", b"..", b"real"}


# Maps.


@pytest.fixture
def mapped(request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, Guest]]:
    with Daemon("--security-label", f"--xattrmap={request.param}") as daemon:
        line = Line(daemon)
        guest = Guest(line.frontend())
        guest.init()
        yield daemon, guest
        line.close()


@pytest.mark.parametrize("mapped", [":map:security.:user.v.:"], indirect=True)
@pytest.mark.parametrize("what", ["create", "mkdir", "mknod"])
def test_the_label_goes_through_the_map(mapped: tuple[Daemon, Guest], what: str) -> None:
    daemon, guest = mapped
    daemon.share.chmod(0o777)
    create(guest, what, ROOT, b"x")
    assert os.getxattr(daemon.share / "x", f"user.v.{MINE}") == VALUE


@pytest.mark.parametrize("mapped", [":bad:all:security.:: :ok:all:::", ":ok:all:::"], indirect=True)
@EVERY
def test_a_label_that_cannot_be_set_creates_nothing(
    mapped: tuple[Daemon, Guest], what: str
) -> None:
    """The map forbids the label; or the label is left to the host, and the capability for it is
    missing."""
    daemon, guest = mapped
    daemon.share.chmod(0o777)
    expect(errno.EPERM, guest.finish(submit(guest, what, ROOT, b"x")))
    assert list(daemon.share.iterdir()) == []


# Death.


@pytest.fixture
def mortal() -> Iterator[tuple[Daemon, Guest]]:
    with Daemon("--security-label", "--modcaps=+sys_admin") as daemon:
        daemon.share.chmod(0o777)
        line = Line(daemon)
        guest = Guest(line.frontend())
        guest.init()
        yield daemon, guest
        line.close()


@EVERY
def test_workers_die_and_leave_nothing(mortal: tuple[Daemon, Guest], what: str) -> None:
    daemon, guest = mortal
    made, deadline = 0, time.monotonic() + 2
    most = 8000  # a file that is never forgotten counts against the limit of open files
    with Killer(lambda: daemon.titled("worker")) as killer:
        while killer.kills < 3 or (time.monotonic() < deadline and made < most):
            waiting = [
                submit(guest, what, ROOT, b"%d" % (made + i), queue=1 + i % QUEUES)
                for i in range(40)
            ]
            for pending in waiting:
                assert guest.finish(pending).error == 0
            made += 40
    assert killer.kills >= 3
    found = {path.name for path in daemon.share.iterdir()}
    assert found == {str(number) for number in range(made)}
    for path in daemon.share.iterdir():
        assert label(path) == VALUE
    guest.call(Op.DESTROY)
    wait_until(lambda: not unnamed_files(daemon), 15, "no unnamed file is left")


def unnamed_files(daemon: Daemon) -> list[str]:
    pool = daemon.the("pool")
    device = daemon.share.stat().st_dev
    found = []
    for path in Path(f"/proc/{pool}/fd").iterdir():
        with suppress(FileNotFoundError):
            st = path.stat()
            if (st.st_dev, st.st_nlink) == (device, 0):
                found.append(str(path.readlink()))
    return found
