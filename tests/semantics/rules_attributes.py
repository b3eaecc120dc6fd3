# SPDX-License-Identifier: Apache-2.0
"""Rules of permissions, owners, set-id bits and times."""

import ctypes
import itertools
import os
from collections.abc import Callable
from typing import Final

from .process import EXTRA, MEMBER, OTHER, OWNER, User, acting_as, as_user, attempt
from .rules import rule
from .syscalls import (
    AT_EACCESS,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    UTIME_NOW,
    UTIME_OMIT,
    access,
    fallocate,
    truncate,
    utimensat,
)
from .tree import changed, entry, make, make_dir, mode_of, tick, times

USERS: Final = (OWNER, MEMBER, EXTRA, OTHER)
ONE_BIT: Final = [1 << bit for bit in range(9)]


def _owned(path: str, mode: int, user: User = OWNER) -> None:
    os.chown(path, user.uid, user.gid)
    os.chmod(path, mode)


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


# ---- permissions ----


def _file_rights(user: User) -> str:
    calls: dict[str, Callable[[], object]] = {
        "r": lambda: _open("f", os.O_RDONLY),
        "w": lambda: _open("f", os.O_WRONLY),
        "b": lambda: _open("f", os.O_RDWR),
        "t": lambda: truncate("f", 1),
        "R": lambda: access("f", os.R_OK, AT_EACCESS),
        "W": lambda: access("f", os.W_OK, AT_EACCESS),
        "X": lambda: access("f", os.X_OK, AT_EACCESS),
    }
    return "".join(k if as_user(user, call) == "ok" else "-" for k, call in calls.items())


READ, WRITE, EXECUTE, NONE = "r---R--", "-w-t-W-", "------X", "-------"


@rule(
    {
        0o400: [READ, NONE, NONE, NONE],
        0o200: [WRITE, NONE, NONE, NONE],
        0o100: [EXECUTE, NONE, NONE, NONE],
        0o040: [NONE, READ, READ, NONE],
        0o020: [NONE, WRITE, WRITE, NONE],
        0o010: [NONE, EXECUTE, EXECUTE, NONE],
        0o004: [NONE, NONE, NONE, READ],
        0o002: [NONE, NONE, NONE, WRITE],
        0o001: [NONE, NONE, NONE, EXECUTE],
    }
)
def each_permission_bit_of_a_file_is_for_one_class() -> object:
    make("f", b"x")
    found = {}
    for mode in ONE_BIT:
        _owned("f", mode)
        found[mode] = [_file_rights(user) for user in USERS]
    return found


def _directory_rights(user: User) -> str:
    calls: dict[str, Callable[[], object]] = {
        "l": lambda: os.listdir("d"),
        "s": lambda: os.stat("d/file"),
        "c": lambda: os.mkdir("d/new"),
        "m": lambda: os.rename("d/file", "d/file2"),
        "u": lambda: os.rmdir("d/new"),
    }
    return "".join(k if as_user(user, call) == "ok" else "-" for k, call in calls.items())


@rule({0o4: "l----", 0o5: "ls---", 0o3: "-scmu", 0o1: "-s---", 0o2: "-----", 0o7: "lscmu"})
def each_permission_bit_of_a_directory_has_its_meaning() -> object:
    found: dict[int, str] = {}
    for bits in (0o4, 0o5, 0o3, 0o1, 0o2, 0o7):
        for shift, user in ((6, OWNER), (3, MEMBER), (3, EXTRA), (0, OTHER)):
            name = f"{bits}.{user.uid}"
            make_dir("d")
            make("d/file")
            _owned("d", bits << shift)
            rights = _directory_rights(user)
            os.rename("d", name)
            assert found.setdefault(bits, rights) == rights, name
    return found


@rule(["EACCES", "ok", "EACCES", "EACCES"])
def access_asks_for_the_real_user() -> object:
    make("f", b"", 0o600)
    with acting_as(OTHER):
        real = attempt(access, "f", os.R_OK)
        os.setresuid(OTHER.uid, 0, 0)
        try:
            effective = attempt(access, "f", os.R_OK, AT_EACCESS)
            again = attempt(access, "f", os.R_OK)
            execute = attempt(access, "f", os.X_OK, AT_EACCESS)
        finally:
            os.setresuid(OTHER.uid, OTHER.uid, 0)
    return [real, effective, again, execute]


@rule(["EPERM", "ok", "ok", "EPERM"])
def only_the_owner_and_root_change_the_mode() -> object:
    make("f")
    _owned("f", 0o644)
    return [
        as_user(OTHER, os.chmod, "f", 0o600),
        as_user(OWNER, os.chmod, "f", 0o600),
        attempt(os.chmod, "f", 0o644),
        as_user(MEMBER, os.chmod, "f", 0o600),
    ]


@rule(["EPERM", "EPERM", "EPERM", "ok", "ok", (1002, 2000)])
def a_user_gives_a_file_to_own_groups_only() -> object:
    make("f")
    _owned("f", 0o644, EXTRA)
    tries = [
        as_user(EXTRA, os.chown, "f", 1000, -1),
        as_user(EXTRA, os.chown, "f", -1, 3000),
        as_user(OTHER, os.chown, "f", -1, 1003),
        as_user(EXTRA, os.chown, "f", -1, 2000),
        as_user(EXTRA, os.chown, "f", 1002, 2000),
    ]
    return [*tries, entry("f").owner]


@rule(["0o7777", "0o7777", "0o1777", "0o1755"])
def root_sets_every_mode_bit() -> object:
    make("f")
    make_dir("d")
    os.chmod("f", 0o7777)
    os.chmod("d", 0o7777)
    both = [mode_of("f"), mode_of("d")]
    os.chmod("d", 0o1777)
    fd = os.open("f", os.O_RDONLY)
    os.fchmod(fd, 0o1755)
    return [*both, mode_of("d"), mode_of("f")]


@rule(["0o644", "0o2644", "0o2755", "0o6755"])
def chmod_drops_setgid_for_a_group_of_others() -> object:
    make("f")
    os.chown("f", 1000, 2000)
    found = []
    for user, mode in ((OWNER, 0o2644), (User(1000, 1000, (2000,)), 0o2644)):
        as_user(user, os.chmod, "f", mode)
        found.append(mode_of("f"))
    as_user(User(1000, 2000), os.chmod, "f", 0o2755)
    found.append(mode_of("f"))
    os.chmod("f", 0o6755)
    return [*found, mode_of("f")]


@rule(["ENOTSUP", "0o777"])
def the_mode_of_a_link_is_fixed() -> object:
    os.symlink("x", "link")
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.fchmodat(-100, b"link", 0o600, 0x100) < 0
    return ["ENOTSUP" if failed else "ok", mode_of("link")]


@rule([(1000, 1001), (1000, 2000), (0, 0)])
def lchown_is_for_the_link_itself() -> object:
    make("f")
    os.symlink("f", "link")
    os.lchown("link", 1000, 1001)
    first = entry("link").owner
    os.lchown("link", -1, 2000)
    return [first, entry("link").owner, entry("f").owner]


@rule(["0o0", b"x"])
def an_open_file_stays_usable_without_permission() -> object:
    make("f", b"x")
    _owned("f", 0o600)
    with acting_as(OWNER):
        fd = os.open("f", os.O_RDWR)
        os.fchmod(fd, 0)
        os.write(fd, b"x")
    return [mode_of(fd), os.pread(fd, 1, 0)]


# ---- times ----


def _moved(call: Callable[[], object], *paths: str) -> list[str]:
    before = [times(path) for path in paths]
    tick()
    call()
    return [changed(b, times(path)) for b, path in zip(before, paths, strict=True)]


def _io(path: str, flags: int, act: Callable[[int], object]) -> Callable[[], None]:
    def run() -> None:
        fd = os.open(path, flags)
        act(fd)
        os.close(fd)

    return run


@rule(
    {
        "mkdir": ["mtime ctime"],
        "creat": ["mtime ctime"],
        "symlink": ["mtime ctime"],
        "mkfifo": ["mtime ctime"],
        "unlink": ["mtime ctime"],
        "rmdir": ["mtime ctime"],
        "rename": ["mtime ctime"],
        "creat of what exists": [""],
        "failed mkdir": [""],
        "failed unlink": [""],
    }
)
def what_changes_a_directory_changes_its_times() -> object:
    make_dir("d")
    calls: dict[str, Callable[[], object]] = {
        "mkdir": lambda: os.mkdir("d/sub"),
        "creat": lambda: _open("d/file", os.O_CREAT | os.O_RDWR),
        "symlink": lambda: os.symlink("x", "d/link"),
        "mkfifo": lambda: os.mkfifo("d/fifo"),
        "unlink": lambda: os.unlink("d/fifo"),
        "rmdir": lambda: os.rmdir("d/sub"),
        "rename": lambda: os.rename("d/link", "d/link2"),
        "creat of what exists": lambda: _open("d/file", os.O_CREAT | os.O_RDWR),
        "failed mkdir": lambda: attempt(os.mkdir, "d/file"),
        "failed unlink": lambda: attempt(os.unlink, "d/missing"),
    }
    return {name: _moved(call, "d") for name, call in calls.items()}


@rule(
    {
        "chmod": "ctime",
        "chmod to the same": "ctime",
        "chown": "ctime",
        "link": "ctime",
        "rename of another name": "ctime",  # POSIX leaves it open
        "write": "mtime ctime",
        "write of nothing": "",
        "read": "",
        "truncate": "mtime ctime",
        "truncate to the same size": "mtime ctime",
        "O_TRUNC of an empty file": "mtime ctime",
        "fallocate": "mtime ctime",
        "punch": "mtime ctime",
        "utime": "atime mtime ctime",
        "open for writing": "",
        "fsync": "",
        "setxattr": "ctime",
    }
)
def what_changes_a_file_changes_its_times() -> object:
    make("f", b"12345678")
    _io("f", os.O_RDONLY, lambda fd: os.read(fd, 1))()  # makes atime later than mtime
    punch = FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE
    calls: dict[str, Callable[[], object]] = {
        "chmod": lambda: os.chmod("f", 0o600),
        "chmod to the same": lambda: os.chmod("f", 0o600),
        "chown": lambda: os.chown("f", 1000, 1000),
        "link": lambda: os.link("f", "g"),
        "rename of another name": lambda: os.rename("g", "h"),
        "write": _io("f", os.O_WRONLY, lambda fd: os.write(fd, b"x")),
        "write of nothing": _io("f", os.O_WRONLY, lambda fd: os.write(fd, b"")),
        "read": _io("f", os.O_RDONLY, lambda fd: os.read(fd, 0)),
        "truncate": lambda: truncate("f", 4),
        "truncate to the same size": lambda: truncate("f", 4),
        "O_TRUNC of an empty file": _io("f", os.O_WRONLY | os.O_TRUNC, os.fsync),
        "fallocate": _io("f", os.O_WRONLY, lambda fd: fallocate(fd, 0, 0, 100)),
        "punch": _io("f", os.O_WRONLY, lambda fd: fallocate(fd, punch, 0, 50)),
        "utime": lambda: os.utime("f"),
        "open for writing": _io("f", os.O_WRONLY, os.fstat),
        "fsync": _io("f", os.O_WRONLY, os.fsync),
        "setxattr": lambda: os.setxattr("f", "user.a", b"1"),
    }
    return {name: _moved(call, "f")[0] for name, call in calls.items()}


@rule(["atime", "", "atime", "", "atime", ""])
def reading_changes_atime_where_it_was_older_than_mtime() -> object:
    make("f", b"data")
    make_dir("d")
    make("d/file")
    os.symlink("target", "link")
    read_file = _io("f", os.O_RDONLY, lambda fd: os.read(fd, 10))
    found = []
    for path, call in (
        ("f", read_file),
        ("d", lambda: os.listdir("d")),
        ("link", lambda: os.readlink("link")),
    ):
        tick()
        found += _moved(call, path) + _moved(call, path)
    return found


@rule(
    [
        (1_600_000_000_123_456_789, 1_500_000_000_987_654_321),
        (1_600_000_000_123_456_789, 7_000_000_000),
        (5_000_000_001, 7_000_000_000),
        (-1_000_000_000, -2_000_000_000 + 5),
        "ctime",
        "mtime ctime",
        "atime ctime",
        "",
        (4_294_967_296_000_000_000, 8_589_934_592_000_000_000),
    ]
)
def utimensat_sets_nanoseconds_and_can_omit() -> object:
    make("f")

    def both() -> tuple[int, int]:
        found = times("f")
        return found["atime"], found["mtime"]

    omit, now = (0, UTIME_OMIT), (0, UTIME_NOW)
    results: list[object] = []
    for atime, mtime in (
        ((1_600_000_000, 123_456_789), (1_500_000_000, 987_654_321)),
        (omit, (7, 0)),
        ((5, 1), omit),
        ((-1, 0), (-2, 5)),
    ):
        utimensat("f", atime, mtime)
        results.append(both())
    results += _moved(lambda: utimensat("f", (-1, 0), (-2, 5)), "f")
    results += _moved(lambda: utimensat("f", omit, now), "f")
    results += _moved(lambda: utimensat("f", now, omit), "f")
    results += _moved(lambda: utimensat("f", omit, omit), "f")
    utimensat("f", (1 << 32, 0), (1 << 33, 0))
    return [*results, both()]


@rule(["EPERM", "ok", "EPERM", "ok", "EACCES", "ok", "ok"])
def times_are_set_by_owners_and_set_to_now_by_writers() -> object:
    make("f", b"", 0o666)
    os.chown("f", 1000, 1000)
    make("g", b"", 0o644)
    os.chown("g", 1000, 1000)
    now, omit = (0, UTIME_NOW), (0, UTIME_OMIT)
    return [
        as_user(OTHER, utimensat, "f", (1, 0), (1, 0)),
        as_user(OTHER, utimensat, "f", now, now),
        as_user(OTHER, utimensat, "f", now, omit),
        as_user(OTHER, utimensat, "g", omit, omit),
        as_user(OTHER, utimensat, "g", now, now),
        as_user(OWNER, utimensat, "g", (1, 0), (1, 0)),
        as_user(OWNER, utimensat, "g", now, omit),
    ]


@rule([(11_000_000_022, 33_000_000_044), True])
def the_times_of_a_link_are_its_own() -> object:
    make("f")
    before = times("f")
    os.symlink("f", "link")
    utimensat("link", (11, 22), (33, 44), follow=False)
    found = times("link")
    return [(found["atime"], found["mtime"]), times("f") == before]


@rule([True, True, True])
def times_do_not_depend_on_how_they_are_asked_for() -> object:
    make("f", b"x")
    fd = os.open("f", os.O_RDWR)
    os.write(fd, b"yy")
    open_times = times(fd)
    same = open_times == times("f")
    os.close(fd)
    closed = times("f") == open_times
    return [same, closed, os.stat("f").st_size == 2]


@rule(True)
def every_combination_of_owner_and_mode_set_at_once_is_kept() -> object:
    make("f")
    for uid, gid, mode in itertools.product((0, 1000, 65534), (0, 1000), (0, 0o4711, 0o1777)):
        os.chown("f", uid, gid)
        os.chmod("f", mode)
        assert (entry("f").owner, mode_of("f")) == ((uid, gid), oct(mode))
    return True
