# SPDX-License-Identifier: Apache-2.0
"""Rules of calls that create, link, remove and rename files."""

import os
import shutil
import stat
import subprocess
from functools import partial

from .process import OTHER, OWNER, acting_as, all_results, as_user, attempt, in_child
from .rules import rule
from .syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, link_target, renameat2
from .tree import entry, make, make_dir, mode_of, read

CREATE = os.O_CREAT | os.O_RDWR


def _create_everything(mode: int) -> None:
    os.close(os.open("open", CREATE, mode))
    os.mkdir("mkdir", mode)
    os.mkfifo("mkfifo", mode)
    os.mknod("mknod", mode | stat.S_IFREG)
    os.mknod("socket", mode | stat.S_IFSOCK)


def _modes() -> list[str]:
    return [mode_of(name) for name in ("open", "mkdir", "mkfifo", "mknod", "socket")]


@rule(["0o640"] * 5)
def the_umask_takes_bits_away() -> object:
    os.umask(0o137)
    _create_everything(0o777)
    return _modes()


@rule(["0o777"] * 5)
def a_umask_of_0_takes_nothing_away() -> object:
    os.umask(0)
    _create_everything(0o777)
    return _modes()


@rule([["0o6755", "0o755", "0o6755", "0o6755", "0o6755"], "0o1755", "0o1644"])
def set_id_bits_can_be_created_and_sticky_stays() -> object:
    _create_everything(0o6777)
    os.mkdir("sticky", 0o1777)
    os.mknod("sticky file", 0o1644 | stat.S_IFREG)
    return _modes(), mode_of("sticky"), mode_of("sticky file")


@rule([(1000, 1000)] * 6)
def what_a_user_creates_is_that_users() -> object:
    with acting_as(OWNER):
        _create_everything(0o644)
        os.symlink("x", "symlink")
    names = ("open", "mkdir", "mkfifo", "mknod", "socket", "symlink")
    return [entry(name).owner for name in names]


@rule([(0, 2000), (0, 2000), "0o2755", (1003, 2000), (0, 2000)])
def a_setgid_directory_passes_its_group_on() -> object:
    make_dir("d", 0o2777)
    os.chown("d", 0, 2000)
    os.chmod("d", 0o2777)
    make("d/file")
    os.mkdir("d/sub")
    with acting_as(OTHER):
        make("d/users")
    os.symlink("x", "d/link")
    owners = [entry(f"d/{name}").owner for name in ("file", "sub")]
    return [*owners, mode_of("d/sub"), entry("d/users").owner, entry("d/link").owner]


@rule(["0o755", "0o2755", "0o2755"])
def a_user_cannot_create_setgid_with_a_group_of_others() -> object:
    make_dir("d", 0o777)
    os.chown("d", 0, 2000)
    os.chmod("d", 0o2777)
    with acting_as(OTHER):
        os.close(os.open("d/file", CREATE, 0o2755))
        os.mkdir("d/sub", 0o755)
    os.close(os.open("d/roots", CREATE, 0o2755))
    return [mode_of(f"d/{name}") for name in ("file", "sub", "roots")]


@rule("0o444")
def a_file_created_without_write_permission_can_be_written_by_its_creator() -> object:
    with acting_as(OWNER):
        fd = os.open("file", CREATE | os.O_EXCL, 0o444)
        os.write(fd, b"written")
    return mode_of(fd)


@rule(["ok", "EEXIST", "EEXIST", "EEXIST", "EEXIST"])
def o_excl_refuses_whatever_there_is() -> object:
    os.symlink("missing", "dangling")
    os.mkdir("d")
    os.mkfifo("fifo")
    flags = CREATE | os.O_EXCL
    return [attempt(os.open, n, flags) for n in ("new", "new", "dangling", "d", "fifo")]


@rule(["ok", b""])
def o_creat_follows_a_dangling_link() -> object:
    os.symlink("target", "dangling")
    return [attempt(os.open, "dangling", CREATE), read("target")]


@rule([1])
def of_many_exclusive_creators_one_wins() -> object:
    flags = CREATE | os.O_EXCL
    outcomes = all_results([lambda: attempt(os.open, "one", flags)] * 8)
    return [outcomes.count("ok")]


@rule([2, 3, 3, 2, (1, b"data"), 0])
def nlink_counts_names() -> object:
    make("a", b"data")
    os.link("a", "b")
    counts = [os.stat("a").st_nlink]
    os.link("b", "c")
    counts += [os.stat(name).st_nlink for name in ("a", "c")]
    os.unlink("a")
    counts.append(os.stat("b").st_nlink)
    os.unlink("b")
    fd = os.open("c", os.O_RDWR)
    alone = os.fstat(fd).st_nlink, os.read(fd, 10)
    os.unlink("c")
    return [*counts, alone, os.fstat(fd).st_nlink]


@rule([2, 4, 3, 2, 0])
def nlink_of_a_directory_counts_its_subdirectories() -> object:
    os.mkdir("d")
    counts = [os.stat("d").st_nlink]
    for name in ("d/one", "d/two"):
        os.mkdir(name)
    counts.append(os.stat("d").st_nlink)
    os.rmdir("d/one")
    counts.append(os.stat("d").st_nlink)
    os.rename("d/two", "two")
    counts.append(os.stat("d").st_nlink)
    fd = os.open("d", os.O_RDONLY)
    os.rmdir("d")
    return [*counts, os.fstat(fd).st_nlink]


@rule([3, 2, 2])
def nlink_follows_a_directory_that_moves() -> object:
    for name in ("a", "b", "a/d"):
        os.mkdir(name)
    os.stat("b")
    before = os.stat("a").st_nlink
    os.rename("a/d", "b/d")
    os.mkdir("c")
    os.rename("c", "b/d")
    return [before, os.stat("a").st_nlink, os.stat("b/d").st_nlink]


@rule(["ENOENT", b"before", b"beforemore", "ENOENT", 10])
def an_unlinked_file_lives_while_it_is_open() -> object:
    make("file", b"before")
    fd = os.open("file", os.O_RDWR)
    os.unlink("file")
    found: list[object] = [attempt(os.stat, "file"), os.pread(fd, 100, 0)]
    os.pwrite(fd, b"more", 6)
    os.fchmod(fd, 0o600)
    found += [os.pread(fd, 100, 0), attempt(os.link, "file", "back")]
    return [*found, os.fstat(fd).st_size]


@rule([b"old", b"new", 0, "ok"])
def renaming_over_an_open_file_leaves_its_readers_the_old_one() -> object:
    make("target", b"old")
    fd = os.open("target", os.O_RDWR)
    make("source", b"new")
    os.rename("source", "target")
    return [os.read(fd, 10), read("target"), os.fstat(fd).st_nlink, attempt(os.fsync, fd)]


@rule([True, True, "ENOENT"])
def a_rename_keeps_the_inode() -> object:
    make("a")
    os.mkdir("d")
    numbers = os.stat("a").st_ino, os.stat("d").st_ino
    os.rename("a", "b")
    os.rename("d", "e")
    same = [os.stat("b").st_ino == numbers[0], os.stat("e").st_ino == numbers[1]]
    return [*same, attempt(os.stat, "a")]


@rule(["ok", 2, True])
def a_rename_between_two_names_of_one_file_does_nothing() -> object:
    make("a")
    os.link("a", "b")
    return [attempt(os.rename, "a", "b"), os.stat("a").st_nlink, os.path.exists("b")]


@rule([b"b", b"a", True, True])
def exchange_swaps_names() -> object:
    make("a", b"a")
    make("b", b"b")
    os.mkdir("d")
    renameat2("a", "b", RENAME_EXCHANGE)
    contents = read("a"), read("b")
    renameat2("a", "d", RENAME_EXCHANGE)
    return [*contents, os.path.isdir("a"), os.path.isfile("d")]


@rule(["EEXIST", "ok", "EINVAL"])
def noreplace_never_replaces() -> object:
    make("a")
    make("b")
    both = RENAME_NOREPLACE | RENAME_EXCHANGE
    return [
        attempt(renameat2, "a", "b", RENAME_NOREPLACE),
        attempt(renameat2, "a", "c", RENAME_NOREPLACE),
        attempt(renameat2, "b", "c", both),
    ]


@rule([("c---------", 0, (1000, 1000)), ("c---------", 0, (0, 0)), b"a"])
def a_whiteout_belongs_to_who_renames() -> object:
    make("a", b"a")
    make("b", b"b")
    with acting_as(OWNER):
        renameat2("a", "a2", RENAME_WHITEOUT)
    renameat2("b", "b2", RENAME_WHITEOUT)
    left = [entry("a"), entry("b")]
    return [*((e.mode, e.rdev, e.owner) for e in left), read("a2")]


@rule(["EPERM", "ok", "EPERM", "ok", "ok"])
def in_a_sticky_directory_only_owners_remove() -> object:
    make_dir("d", 0o1777)
    for name in ("a", "b"):
        make(f"d/{name}")
        os.chown(f"d/{name}", 1000, 1000)
    return [
        as_user(OTHER, os.unlink, "d/a"),
        as_user(OWNER, os.unlink, "d/a"),
        as_user(OTHER, os.rename, "d/b", "d/c"),
        as_user(OWNER, os.rename, "d/b", "d/c"),
        attempt(os.unlink, "d/c"),
    ]


@rule(["EACCES", "EACCES", "ok", "ok"])
def removing_needs_write_permission_of_the_directory() -> object:
    make_dir("d", 0o755)
    os.chown("d", 1000, 1000)
    make("d/a")
    make("d/b")
    return [
        as_user(OTHER, os.unlink, "d/a"),
        as_user(OTHER, os.rename, "d/a", "d/c"),
        as_user(OWNER, os.unlink, "d/a"),
        as_user(OWNER, os.rename, "d/b", "b"),
    ]


@rule(["EACCES", "ok"])
def moving_a_directory_needs_write_permission_of_itself() -> object:
    make_dir("d", 0o755)  # belongs to root; a move changes its ".."
    make_dir("own", 0o755)
    os.chown("own", 1000, 1000)
    make_dir("to", 0o777)
    return [as_user(OWNER, os.rename, "d", "to/d"), as_user(OWNER, os.rename, "own", "to/own")]


@rule(["ok", "ok", b"kept", 1, "ENOENT"])
def o_tmpfile_gets_a_name_by_link() -> object:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"kept")
    source = f"/proc/self/fd/{fd}"
    excl = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o640)
    return [
        attempt(link_target, source, "named"),
        attempt(os.fsync, fd),
        read("named"),
        os.fstat(fd).st_nlink,
        attempt(link_target, f"/proc/self/fd/{excl}", "never"),
    ]


@rule([(1000, 1000), "0o640", 0])
def o_tmpfile_is_its_creators() -> object:
    os.umask(0o027)
    with acting_as(OWNER):
        fd = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666)
    st = os.fstat(fd)
    return [(st.st_uid, st.st_gid), mode_of(fd), st.st_nlink]


@rule(["EPERM", "EACCES"])
def protected_things_are_not_linked() -> object:
    os.mkdir("d")
    make("d/file", b"", 0o666)
    make_dir("locked", 0o755)
    return [attempt(os.link, "d", "linked"), as_user(OTHER, os.link, "d/file", "locked/linked")]


@rule(["EXDEV", "EXDEV"])
def nothing_is_linked_or_renamed_out_of_the_mount() -> object:
    make("file")
    return [attempt(os.link, "file", "/dev/x"), attempt(os.rename, "file", "/dev/x")]


@rule([255, [b"\xff\xfe", b"x" * 255], b"ok", "ENAMETOOLONG"])
def names_are_255_bytes_of_anything() -> object:
    make(os.fsdecode(b"x" * 255), b"ok")
    make(os.fsdecode(b"\xff\xfe"))
    listed = sorted(os.listdir(b"."), reverse=True)
    long = os.statvfs(".").f_namemax
    return [long, listed, read("x" * 255), attempt(make, "x" * 256)]


@rule([b"\xff target \x01", 4095, "ENAMETOOLONG"])
def a_target_is_4095_bytes_of_anything() -> object:
    os.symlink(b"\xff target \x01", b"link")
    os.symlink("t" * 4095, "long")
    links = os.readlink(b"link"), len(os.readlink("long"))
    return [*links, attempt(os.symlink, "t" * 4096, "longer")]


@rule([40, "ok", "ENAMETOOLONG", b"deep", True])
def a_tree_may_be_deeper_than_a_path_is_long() -> object:
    name, fd = "d" * 200, os.open(".", os.O_RDONLY)
    for _ in range(40):
        os.mkdir(name, dir_fd=fd)
        fd = os.open(name, os.O_RDONLY, dir_fd=fd)
    with open(os.open("file", CREATE, dir_fd=fd), "wb") as file:
        file.write(b"deep")
    there = os.open("file", os.O_RDONLY, dir_fd=fd)
    path = "/".join([name] * 40)
    up = os.stat("..", dir_fd=fd).st_nlink == 3
    return [40, "ok", attempt(os.stat, path), os.read(there, 10), up]


@rule(["ok", "ELOOP"])
def forty_links_are_followed_and_no_more() -> object:
    make("l0")
    for number in range(1, 42):
        os.symlink(f"l{number - 1}", f"l{number}")
    return [attempt(os.stat, "l40"), attempt(os.stat, "l41")]


@rule(["ENOENT", "ENOENT", "ENOENT", []])
def nothing_is_created_in_a_removed_directory() -> object:
    os.mkdir("d")
    os.chdir("d")
    os.rmdir("../d")
    tries = [attempt(make, "file"), attempt(os.mkdir, "sub"), attempt(os.symlink, "x", "link")]
    return [*tries, os.listdir(".")]


@rule([400, 0])
def creating_and_removing_at_the_same_time_loses_nothing() -> object:
    os.mkdir("d")

    def creator(child: int) -> int:
        return sum(attempt(make, f"d/{child}.{number}") == "ok" for number in range(100))

    def remover(child: int) -> int:
        return sum(attempt(os.unlink, f"d/{child}.{number}") != "ok" for number in range(100))

    created = sum(all_results([partial(creator, child) for child in range(4)]))
    all_results([partial(remover, child) for child in range(4)])
    return [created, len(os.listdir("d"))]


@rule(["ETXTBSY", "ok", "EACCES"])
def a_program_that_runs_is_not_written() -> object:
    shutil.copy("/bin/sleep", "program")
    process = subprocess.Popen(["./program", "30"])
    try:
        busy = attempt(os.open, "program", os.O_WRONLY)
    finally:
        process.kill()
        process.wait()
    os.chmod("program", 0o644)
    run = attempt(subprocess.run, ["./program", "0"])
    return [busy, attempt(os.open, "program", os.O_WRONLY), run]


@rule([b"abc"])
def what_one_process_creates_another_sees_at_once() -> object:
    in_child(lambda: make("file", b"abc"))
    return [in_child(lambda: read("file"))]
