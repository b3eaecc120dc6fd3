# SPDX-License-Identifier: Apache-2.0
"""What each option changes, seen by a guest or on the host, on a running daemon."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.waiting import LOADED

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import (
    ATTR_OUT,
    COPY_IN,
    CREATE_IN,
    ENTRY,
    FALLOCATE_IN,
    GETATTR_IN,
    GETXATTR_IN,
    INIT_IN,
    LINK_IN,
    LINUX_FLAGS,
    LK_IN,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_IN,
    OPEN_OUT,
    RENAME2_IN,
    RENAME_IN,
    ROOT,
    SETATTR_IN,
    SETXATTR_IN,
    Guest,
    Op,
    expect,
    names,
    write_in,
)

READDIRPLUS, WRITEBACK, ACL, KILLPRIV = 1 << 13, 1 << 16, 1 << 20, 1 << 28
DONT_MASK, SUBMOUNTS, DIRECT_IO_MMAP = 1 << 6, 1 << 27, 1 << 36
FLOCK, POSIX_LOCKS = 1 << 10, 1 << 1
DIRECT_IO, KEEP_CACHE, CACHE_DIR, NO_FLUSH = 1, 2, 8, 32
UNCACHED = DIRECT_IO | 64  # PARALLEL_DIRECT_WRITES
SECOND = 10**9
DAY = 86400 * SECOND
F_WRLCK = 1


@contextmanager
def served(*options: str, flags: int = LINUX_FLAGS) -> Iterator[tuple[Daemon, Guest]]:
    """A daemon with these options, a file "file" in its share, and a guest that has mounted the
    share."""
    with Daemon(*options) as daemon:
        (daemon.share / "file").write_text("data")
        with Frontend(daemon.socket) as frontend:
            guest = Guest(frontend.setup(2))
            guest.init(flags=flags)
            yield daemon, guest


class Times(NamedTuple):
    """The time in ns for which the reply to a LOOKUP is valid."""

    nodeid: int
    entry: int
    attr: int


def look(guest: Guest, name: bytes) -> Times:
    data = guest.call(Op.LOOKUP, ROOT, names(name), room=128)
    nodeid, _, entry, attr, entry_ns, attr_ns = ENTRY.unpack_from(data)
    return Times(nodeid, entry * SECOND + entry_ns, attr * SECOND + attr_ns)


def open_flags(guest: Guest, op: Op, nodeid: int, flags: int) -> int:
    return int(OPEN_OUT.unpack(guest.call(op, nodeid, OPEN_IN.pack(flags, 0), room=16))[1])


@pytest.mark.parametrize(
    ("mode", "seconds", "of_file", "of_directory", "plus"),
    [
        ("never", 0, UNCACHED, 0, False),
        ("metadata", DAY, UNCACHED, CACHE_DIR | KEEP_CACHE, True),
        ("auto", SECOND, 0, 0, True),
        ("always", DAY, KEEP_CACHE, CACHE_DIR | KEEP_CACHE, True),
    ],
)
def test_cache_modes(mode: str, seconds: int, of_file: int, of_directory: int, plus: bool) -> None:
    with served(f"--cache={mode}") as (_, guest):
        found = look(guest, b"file")
        assert (found.entry, found.attr) == (seconds, seconds)
        assert open_flags(guest, Op.OPEN, found.nodeid, os.O_RDWR) == of_file | NO_FLUSH
        assert open_flags(guest, Op.OPENDIR, ROOT, os.O_RDONLY) == of_directory
        body = CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o100644, 0, 0) + names(b"new")
        data = guest.call(Op.CREATE, ROOT, body, room=144)
        assert OPEN_OUT.unpack_from(data, 128)[1] == of_file | NO_FLUSH
        assert bool(guest.flags & READDIRPLUS) == plus
        expect(errno.ENOENT, guest.ask(Op.LOOKUP, ROOT, names(b"none"), room=128))


def test_a_flush_is_asked_for_where_it_does_something(overlay: Path) -> None:
    """FLUSH ends record locks; and overlayfs may pass it on to a file system that writes back
    then."""
    with served("-o", "posix_lock") as (_, guest):
        nodeid = look(guest, b"file").nodeid
        assert open_flags(guest, Op.OPEN, nodeid, os.O_RDONLY) == 0
    with Daemon(share=overlay) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        nodeid = guest.lookup(guest.lookup(ROOT, b"sub").nodeid, b"x").nodeid
        assert open_flags(guest, Op.OPEN, nodeid, os.O_RDONLY) == NO_FLUSH
        assert open_flags(guest, Op.OPEN, nodeid, os.O_RDWR) == 0


def test_timeouts_to_the_nanosecond() -> None:
    options = ("--entry-timeout=1.5", "-o", "attr_timeout=0.25", "--negative-timeout=2.000000001")
    with served("--cache=always", "--timeout=9", *options) as (daemon, guest):
        found = look(guest, b"file")
        assert (found.entry, found.attr) == (SECOND * 3 // 2, SECOND // 4)
        data = guest.call(Op.GETATTR, found.nodeid, GETATTR_IN.pack(0, 0, 0), room=104)
        assert ATTR_OUT.unpack_from(data)[:2] == (0, SECOND // 4)
        assert look(guest, b"none")[:2] == (0, 2 * SECOND + 1)
        expect(errno.ENOENT, guest.ask(Op.LOOKUP, ROOT, names(b""), room=128))
        (daemon.share / "none").touch()
        assert look(guest, b"none").nodeid != 0


def test_timeout_is_both() -> None:
    with served("-o", "timeout=2.5") as (_, guest):
        assert look(guest, b"file")[1:] == (SECOND * 5 // 2, SECOND * 5 // 2)


def test_readonly_refuses_every_change() -> None:
    with served("--readonly", "-o", "xattr") as (daemon, guest):
        share = daemon.share
        (share / "folder").mkdir()
        os.setxattr(share / "file", "user.x", b"y")
        before = {p.name: p.stat() for p in share.iterdir()}
        file, folder = look(guest, b"file").nodeid, look(guest, b"folder").nodeid
        fh = guest.open(file, os.O_RDONLY)
        size = SETATTR_IN.pack(1 << 3, 0, 0, 0, *[0] * 12)
        mode = SETATTR_IN.pack(1 << 0, 0, 0, 0, *[0] * 7, 0, 0o777, 0, 0, 0)
        owner = SETATTR_IN.pack(1 << 1 | 1 << 2, 0, 0, 0, *[0] * 12)
        times = SETATTR_IN.pack(1 << 4 | 1 << 5 | 1 << 7 | 1 << 8, 0, 0, 0, *[0] * 12)
        create = CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o100644, 0, 0)
        requests: Sequence[tuple[Op, int, bytes]] = (
            (Op.MKDIR, ROOT, MKDIR_IN.pack(0o755, 0) + names(b"d")),
            (Op.MKNOD, ROOT, MKNOD_IN.pack(0o100644, 0, 0, 0) + names(b"n")),
            (Op.SYMLINK, ROOT, names(b"s", b"target")),
            (Op.LINK, ROOT, LINK_IN.pack(file) + names(b"l")),
            (Op.CREATE, ROOT, create + names(b"c")),
            (Op.CREATE, ROOT, create + names(b"file")),
            (Op.TMPFILE, ROOT, create + names(b"t")),
            (Op.UNLINK, ROOT, names(b"file")),
            (Op.RMDIR, ROOT, names(b"folder")),
            (Op.RENAME, ROOT, RENAME_IN.pack(ROOT) + names(b"file", b"f")),
            (Op.RENAME2, ROOT, RENAME2_IN.pack(folder, 1, 0) + names(b"file", b"f")),
            *((Op.SETATTR, file, body) for body in (size, mode, owner, times)),
            *((Op.OPEN, file, OPEN_IN.pack(how, 0)) for how in (os.O_WRONLY, os.O_RDWR)),
            (Op.OPEN, file, OPEN_IN.pack(os.O_RDONLY | os.O_TRUNC, 0)),
            (Op.SETXATTR, file, SETXATTR_IN.pack(1, 0, 0, 0) + names(b"user.n") + b"z"),
            (Op.REMOVEXATTR, file, names(b"user.x")),
            (Op.WRITE, file, write_in(fh=fh, size=1) + b"z"),
            (Op.FALLOCATE, file, FALLOCATE_IN.pack(fh, 0, 99, 0, 0)),
            (Op.COPY_FILE_RANGE, file, COPY_IN.pack(fh, 0, file, fh, 9, 1, 0)),
        )
        for op, nodeid, body in requests:
            reply = guest.ask(op, nodeid, body)
            assert reply.error == errno.EROFS, f"{op.name}: {os.strerror(reply.error)}"
        assert {p.name: p.stat() for p in share.iterdir()} == before
        assert guest.read(file, fh, 0, 9) == b"data"


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ("writeback", WRITEBACK),
        ("flock", FLOCK),
        ("posix_lock", POSIX_LOCKS),
        ("killpriv_v2", KILLPRIV),
        ("posix_acl", ACL),
        ("allow_mmap", DIRECT_IO_MMAP),
        ("announce_submounts", SUBMOUNTS),
        ("readdirplus", READDIRPLUS),
    ],
)
def test_what_init_agrees_on(option: str, flag: int) -> None:
    name = option.replace("_", "-")
    for options in (("-o", option), (f"--no-{name}", f"--{name}")):
        with served(*options) as (_, guest):
            assert guest.flags & flag
    for options in (("-o", f"no_{option}"), (f"--{name}", f"--no-{name}")):
        with served(*options) as (_, guest):
            assert not guest.flags & flag


def get_acl(guest: Guest) -> int:
    body = GETXATTR_IN.pack(100, 0) + names(b"system.posix_acl_access")
    return guest.ask(Op.GETXATTR, look(guest, b"file").nodeid, body).error


def test_acls_are_hidden_unless_both_sides_want_them() -> None:
    with served("--xattr") as (_, guest):
        assert get_acl(guest) == errno.EOPNOTSUPP
    with served("--posix-acl=auto") as (_, guest):
        assert guest.flags & ACL
        assert get_acl(guest) in (0, errno.ENODATA)
    with served("--posix-acl=auto", flags=LINUX_FLAGS & ~DONT_MASK) as (_, guest):
        assert not guest.flags & ACL
        assert get_acl(guest) == errno.EOPNOTSUPP


def test_a_guest_that_must_do_acls_and_cannot_is_refused() -> None:
    with Daemon("--posix-acl") as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        flags = LINUX_FLAGS & ~DONT_MASK
        body = INIT_IN.pack(7, 41, 0, flags & 0xFFFF_FFFF, flags >> 32)
        expect(errno.EPROTO, guest.ask(Op.INIT, 0, body, room=64))
        wait_until(lambda: "lacks DONT_MASK" in daemon.log.read_text(), 2, "a line names it")
        guest.init()
        assert guest.flags & ACL


def test_killpriv_that_a_guest_lacks_is_reported_if_asked_for() -> None:
    for options, asked in (((), False), (("--killpriv-v2",), True)):
        with served(*options, flags=LINUX_FLAGS & ~KILLPRIV) as (daemon, guest):
            wait_until(lambda: "has mounted" in daemon.log.read_text(), 2, "a line for INIT")
            if asked:
                wait_until(
                    lambda: "--killpriv-v2: " in daemon.log.read_text(), 2, "a line names it"
                )
            look(guest, b"file")
            assert ("--killpriv-v2: " in daemon.log.read_text()) == asked


def test_xattr_and_locks_are_off_by_default() -> None:
    with served() as (_, guest):
        nodeid = look(guest, b"file").nodeid
        body = GETXATTR_IN.pack(100, 0) + names(b"user.x")
        expect(errno.ENOSYS, guest.ask(Op.GETXATTR, nodeid, body))
        fh = guest.open(nodeid)
        for flock in (0, 1):
            body = LK_IN.pack(fh, 1, 0, (1 << 63) - 1, F_WRLCK, 1, flock, 0)
            expect(errno.ENOSYS, guest.ask(Op.SETLK, nodeid, body))


@pytest.mark.parametrize("flock", [False, True])
def test_a_wait_for_a_lock_is_bounded(flock: bool) -> None:
    with served("-o", "flock,posix_lock", "--lock-wait=0.4") as (_, guest):
        nodeid = look(guest, b"file").nodeid
        holder, waiter = guest.open(nodeid), guest.open(nodeid)
        whole = (0, (1 << 63) - 1, F_WRLCK, 1, int(flock), 0)
        assert guest.ask(Op.SETLK, nodeid, LK_IN.pack(holder, 1, *whole)).error == 0
        start = time.monotonic()
        waiting = guest.submit(Op.SETLKW, nodeid, LK_IN.pack(waiter, 2, *whole))
        guest.getattr(nodeid)
        expect(errno.EDEADLK, guest.finish(waiting))
        assert 0.4 <= time.monotonic() - start < LOADED


def test_each_worker_stays_on_its_cpu() -> None:
    first, *others = sorted(os.sched_getaffinity(0))
    second = others[0] if others else first
    cpus = f"{second},{first}" if others else str(first)
    with served(f"--queue-cpus={cpus}", "--request-queues=2") as (daemon, guest):
        look(guest, b"file")
        for slot, cpu in enumerate((second, first)):
            pid = daemon.the(f"worker {slot}")
            assert f"Cpus_allowed_list:\t{cpu}\n" in Path(f"/proc/{pid}/status").read_text()
        pid = daemon.the("worker 1")
        os.kill(pid, 9)
        wait_until(
            lambda: daemon.titled("worker 1") not in ([], [pid]), 5, "the worker's successor"
        )
        guest.call(Op.LOOKUP, ROOT, names(b"file"), room=128, queue=2)
        pid = daemon.the("worker 1")
        assert f"Cpus_allowed_list:\t{first}\n" in Path(f"/proc/{pid}/status").read_text()


def host_flags(daemon: Daemon, guest: Guest, flags: int) -> int:
    """The flags with which the daemon has opened "file" for a guest that opens it with `flags`."""
    fh = guest.open(nodeid := look(guest, b"file").nodeid, flags)
    folder = Path(f"/proc/{daemon.the('pool')}")
    found = [
        int(line.split()[1], 8)
        for fd in (folder / "fd").iterdir()
        if fd.readlink().name == "file"
        for line in (folder / "fdinfo" / fd.name).read_text().splitlines()
        if line.startswith("flags:")
    ]
    guest.release(nodeid, fh)
    (opened,) = [seen for seen in found if not seen & os.O_PATH]
    return opened


@pytest.mark.parametrize(
    ("option", "flag"),
    [("--allow-direct-io", os.O_DIRECT), ("--preserve-noatime", os.O_NOATIME)],
)
def test_flags_are_passed_on_if_allowed(option: str, flag: int) -> None:
    with served() as (daemon, guest):
        assert not host_flags(daemon, guest, os.O_RDONLY | flag) & flag
    with served(option) as (daemon, guest):
        assert host_flags(daemon, guest, os.O_RDONLY | flag) & flag


def test_new_symbolic_links_are_refused_if_forbidden() -> None:
    body = names(b"link", b"/etc/passwd")
    with served("--forbid-symlinks") as (daemon, guest):
        (daemon.share / "there").symlink_to("file")
        expect(errno.EPERM, guest.ask(Op.SYMLINK, ROOT, body))
        assert not (daemon.share / "link").is_symlink()
        there = guest.lookup(ROOT, b"there").nodeid
        assert (
            guest.call(Op.READLINK, there) == b"file"
        )  # symlinks that the host has made still work
        assert guest.call(Op.MKDIR, ROOT, MKDIR_IN.pack(0o755, 0) + names(b"folder"))
    with served() as (daemon, guest):
        assert guest.call(Op.SYMLINK, ROOT, body)
        assert (daemon.share / "link").readlink() == Path("/etc/passwd")


def test_a_submount_is_announced_unless_an_option_forbids_it() -> None:
    for options, expected in (((), 1), (("--no-announce-submounts",), 0)):
        with Daemon(*options) as daemon:
            inner = daemon.share / "inner"
            inner.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "vfsd-test", str(inner)], check=True)
            try:
                with Frontend(daemon.socket) as frontend:
                    guest = Guest(frontend.setup(1))
                    guest.init()
                    assert guest.lookup(ROOT, b"inner").attr.flags & 1 == expected
            finally:
                subprocess.run(["umount", "--lazy", str(inner)], check=True)


def test_queues_workers_and_open_files_are_as_many_as_said() -> None:
    options = ("--request-queues=2", "--workers=1", "--rlimit-nofile=4321")
    with served(*options) as (daemon, guest):
        assert guest.frontend.ask(17).u64 == 3  # GET_QUEUE_NUM counts the hiprio queue
        pid = daemon.the("worker 0")
        assert daemon.titled("worker 1") == []
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert [line.split()[3:5] for line in limits.splitlines() if "open files" in line] == [
            ["4321", str(max(4321, int(limits.split("Max open files")[1].split()[1])))]
        ]


def test_a_log_that_is_off_stays_empty() -> None:
    with served("--log-level=off") as (daemon, guest):
        look(guest, b"file")
        guest.call(Op.DESTROY, 0)
        assert daemon.log.read_text() == ""


def test_a_config_file_serves() -> None:
    with Daemon() as folder:
        config = folder.folder / "vm.toml"
        config.write_text('cache = "always"\nxattr = true\n')
        with served(f"--config={config}", "--no-xattr") as (_, guest):
            found = look(guest, b"file")
            assert found.entry == DAY
            body = GETXATTR_IN.pack(100, 0) + names(b"user.x")
            expect(errno.ENOSYS, guest.ask(Op.GETXATTR, found.nodeid, body))
