# SPDX-License-Identifier: Apache-2.0
"""Rules of set-id bits: which bits a file keeps when it changes. This depends on the user that
changes the file, and on the call."""

import os
from collections.abc import Callable
from typing import Final

from .process import EXTRA, MEMBER, OTHER, OWNER, ROOT, User, acting_as, holding_fsetid
from .rules import rule
from .syscalls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate, truncate
from .tree import make, make_dir, mode_of


def _after(user: User, mode: int, change: Callable[[], object], owner: User = OWNER) -> str:
    make("s", b"12345678")
    os.chown("s", owner.uid, owner.gid)
    os.chmod("s", mode)
    os.stat("s")
    with acting_as(user):
        change()
    found = mode_of("s")
    os.unlink("s")
    return found


def _write(flags: int) -> None:
    fd = os.open("s", os.O_WRONLY | flags)
    os.write(fd, b"x")
    os.close(fd)


def _fallocate(mode: int) -> None:
    fd = os.open("s", os.O_RDWR)
    fallocate(fd, mode, 0, 4)
    os.close(fd)


def _ftruncate() -> None:
    fd = os.open("s", os.O_RDWR)
    os.ftruncate(fd, 3)
    os.close(fd)


def _copy() -> None:
    source = os.open("source", os.O_RDONLY)
    fd = os.open("s", os.O_RDWR)
    os.copy_file_range(source, fd, 4)
    os.close(fd)
    os.close(source)


CHANGES: Final[dict[str, Callable[[], object]]] = {
    "write": lambda: _write(0),
    "append": lambda: _write(os.O_APPEND),
    "synchronous write": lambda: _write(os.O_DSYNC),
    "O_TRUNC and write": lambda: _write(os.O_TRUNC),
    "truncate": lambda: truncate("s", 3),
    "truncate to the same size": lambda: truncate("s", 8),
    "ftruncate": _ftruncate,
    "O_TRUNC": lambda: os.close(os.open("s", os.O_WRONLY | os.O_TRUNC)),
    "fallocate": lambda: _fallocate(0),
    "keep size": lambda: _fallocate(FALLOC_KEEP_SIZE),
    "punch": lambda: _fallocate(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE),
    "zero": lambda: _fallocate(FALLOC_ZERO_RANGE),
    "copy": _copy,
}
SET_ID_MODES: Final = (0o6777, 0o4777, 0o2777, 0o6767, 0o2767, 0o6666, 0o2666)
KEPT: Final = {mode: oct(mode) for mode in SET_ID_MODES}
CLEARED: Final = {
    0o6777: "0o777",
    0o4777: "0o777",
    0o2777: "0o777",
    0o6767: "0o2767",
    0o2767: "0o2767",
    0o6666: "0o2666",
    0o2666: "0o2666",
}
# A change by a user that is not in the file's group also clears setgid without group execution.
CLEARED_OF_OTHERS: Final = {mode: oct(mode & 0o777) for mode in SET_ID_MODES}


def _changed_by(user: User, owner: User = OWNER) -> object:
    make("source", b"abcdefgh", 0o644)
    os.chmod(".", 0o777)
    return {
        name: {mode: _after(user, mode, change, owner) for mode in SET_ID_MODES}
        for name, change in CHANGES.items()
    }


@rule(dict.fromkeys(CHANGES, KEPT))
def what_root_changes_keeps_set_id_bits() -> object:
    return _changed_by(ROOT)


@rule(dict.fromkeys(CHANGES, KEPT))
def what_is_changed_with_fsetid_keeps_set_id_bits() -> object:
    with holding_fsetid():
        return _changed_by(OTHER)


@rule("0o6777")
def what_root_writes_keeps_set_id_bits_whoever_asked_before() -> object:
    make("s", b"12345678", 0o6777)
    fd = os.open("s", os.O_WRONLY)
    with acting_as(OTHER):
        os.mkdir("users")  # the worker that serves this acts as OTHER
    os.write(fd, b"x")
    return mode_of("s")


@rule(dict.fromkeys(CHANGES, CLEARED))
def what_the_owner_changes_loses_set_id_bits() -> object:
    return _changed_by(OWNER)


@rule(dict.fromkeys(CHANGES, CLEARED))
def what_a_member_of_the_group_changes_loses_set_id_bits() -> object:
    return _changed_by(MEMBER)


@rule(dict.fromkeys(CHANGES, CLEARED))
def what_a_supplementary_member_changes_loses_set_id_bits() -> object:
    return _changed_by(EXTRA)


@rule(dict.fromkeys(CHANGES, CLEARED_OF_OTHERS))
def what_another_user_changes_loses_set_id_bits() -> object:
    return _changed_by(OTHER)


@rule(dict.fromkeys(CHANGES, CLEARED_OF_OTHERS))
def what_another_user_changes_of_roots_group_loses_set_id_bits() -> object:
    return _changed_by(OTHER, User(1000, 0))


@rule(CLEARED)
def what_gets_set_id_bits_while_it_is_open_loses_them() -> object:
    """The same user writes to the file just before."""
    make("s", b"x")
    os.chown("s", 1000, 1000)
    fd = os.open("s", os.O_WRONLY)
    found = {}
    for mode in SET_ID_MODES:
        with acting_as(OWNER):
            os.pwrite(fd, b"x", 0)
        os.chmod("s", mode)
        with acting_as(OWNER):
            os.pwrite(fd, b"x", 0)
        found[mode] = mode_of(fd)
    return found


CHOWNS: Final[dict[str, Callable[[], object]]] = {
    "to the same": lambda: os.chown("s", 1000, 1000),
    "of nothing": lambda: os.chown("s", -1, -1),
    "of the group": lambda: os.chown("s", -1, 1000),
}


@rule(dict.fromkeys(CHOWNS, CLEARED))
def chown_by_the_owner_drops_set_id_bits() -> object:
    return {
        name: {mode: _after(OWNER, mode, change) for mode in SET_ID_MODES}
        for name, change in CHOWNS.items()
    }


@rule(dict.fromkeys(CHOWNS, CLEARED))
def chown_by_root_drops_set_id_bits_too() -> object:
    return {
        name: {mode: _after(ROOT, mode, change) for mode in SET_ID_MODES}
        for name, change in CHOWNS.items()
    }


@rule(["0o6755", "0o6755", "0o6755"])
def chown_of_a_directory_keeps_set_id_bits() -> object:
    found = []
    for number, user in enumerate((ROOT, OWNER, OWNER)):
        make_dir(f"d{number}")
        os.chown(f"d{number}", 1000, 1000)
        os.chmod(f"d{number}", 0o6755)
        with acting_as(user):
            os.chown(f"d{number}", -1, 1000)
        found.append(mode_of(f"d{number}"))
    return found
