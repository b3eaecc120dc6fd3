# SPDX-License-Identifier: Apache-2.0
"""Rules of file data (sizes, holes, appends, copies, mappings) and of reading directories."""

import mmap
import os
from functools import partial
from typing import Final

from .process import Child, all_results, attempt, result
from .rules import on_the_host, rule
from .syscalls import (
    FALLOC_COLLAPSE,
    FALLOC_INSERT,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    fallocate,
    getdents,
)
from .tree import make, read

PAGE: Final = 4096
BIG: Final = 1 << 20


def _new(data: bytes = b"") -> int:
    fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data)
    return fd


@rule([b"abc\0\0\0\0\0", 8, b"ab", b"ab\0\0"])
def truncating_fills_with_zeroes() -> object:
    fd = _new(b"abc")
    os.ftruncate(fd, 8)
    grown, size = os.pread(fd, 100, 0), os.fstat(fd).st_size
    os.truncate("f", 2)
    shrunk = os.pread(fd, 100, 0)
    os.ftruncate(fd, 4)
    return [grown, size, shrunk, os.pread(fd, 100, 0)]


@rule(["EBADF", "EBADF", "EBADF", "EINVAL", "EBADF"])
def an_fd_does_only_what_it_was_opened_for() -> object:
    make("f", b"data")
    reader, writer = os.open("f", os.O_RDONLY), os.open("f", os.O_WRONLY)
    return [
        attempt(os.write, reader, b"x"),
        attempt(os.read, writer, 1),
        attempt(fallocate, reader, 0, 0, 1),
        attempt(os.ftruncate, reader, 0),
        attempt(os.copy_file_range, writer, reader, 1),
    ]


@rule(["ok", 1, b"", "EFBIG", "EINVAL", "EFBIG"])
def offsets_have_limits() -> object:
    fd = _new()
    top = (1 << 43) if os.statvfs(".").f_bsize else 0  # ext4's limit is 16 TiB - 4 KiB
    return [
        attempt(os.ftruncate, fd, top),
        os.pwrite(fd, b"x", top - 1),
        os.pread(fd, 1, top),
        attempt(os.pwrite, fd, b"x", (1 << 63) - 2),
        attempt(os.lseek, fd, -1, os.SEEK_SET),
        attempt(os.ftruncate, fd, (1 << 63) - 1),
    ]


@rule(["ENXIO", 8 * PAGE, 12 * PAGE, 8 * PAGE, "ENXIO", 0, 16 * PAGE])
def holes_are_found() -> object:
    fd = _new()
    os.ftruncate(fd, 16 * PAGE)
    os.pwrite(fd, b"x" * 4 * PAGE, 8 * PAGE)
    os.fsync(fd)
    empty = _empty_seek()
    return [
        empty,
        os.lseek(fd, 0, os.SEEK_DATA),
        os.lseek(fd, 8 * PAGE, os.SEEK_HOLE),
        os.lseek(fd, 8 * PAGE, os.SEEK_DATA),
        result(os.lseek, fd, 12 * PAGE, os.SEEK_DATA),
        os.lseek(fd, 0, os.SEEK_HOLE),
        os.lseek(fd, 0, os.SEEK_END),
    ]


def _empty_seek() -> object:
    fd = os.open("empty", os.O_RDWR | os.O_CREAT)
    return result(os.lseek, fd, 0, os.SEEK_DATA)


@rule([6 * PAGE, True, 4 * PAGE, True, 4 * PAGE, True])
def fallocate_reserves_and_keeps_size() -> object:
    fd = _new(b"x" * PAGE)
    fallocate(fd, 0, 0, 6 * PAGE)
    found: list[object] = [os.fstat(fd).st_size, os.fstat(fd).st_blocks >= 48]
    os.ftruncate(fd, 4 * PAGE)
    fallocate(fd, FALLOC_KEEP_SIZE, 4 * PAGE, 8 * PAGE)
    found += [os.fstat(fd).st_size, os.fstat(fd).st_blocks >= 64]
    zeroes = read("f") == b"x" * PAGE + bytes(3 * PAGE)
    return [*found, os.fstat(fd).st_size, zeroes]


@rule(["ok", True, "ok", True, "ok", True, 5 * PAGE])
def fallocate_punches_and_zeroes() -> object:
    data = b"".join(bytes([65 + page]) * PAGE for page in range(5))
    fd = _new(data)
    wanted = bytearray(data)
    found: list[object] = [attempt(fallocate, fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 100, PAGE)]
    wanted[100 : 100 + PAGE] = bytes(PAGE)
    found.append(read("f") == wanted)
    found.append(attempt(fallocate, fd, FALLOC_ZERO_RANGE, 2 * PAGE + 5, PAGE))
    wanted[2 * PAGE + 5 : 3 * PAGE + 5] = bytes(PAGE)
    found.append(read("f") == wanted)
    keep = FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE
    found.append(attempt(fallocate, fd, keep, 5 * PAGE, PAGE))
    return [*found, read("f") == wanted, os.fstat(fd).st_size]


@rule(["ok", b"AC", "ok", b"A\0C", "EINVAL"])
def fallocate_collapses_and_inserts() -> object:
    fd = _new(b"".join(letter * PAGE for letter in (b"A", b"B", b"C")))
    collapsed = attempt(fallocate, fd, FALLOC_COLLAPSE, PAGE, PAGE)
    first = read("f")[::PAGE]
    inserted = attempt(fallocate, fd, FALLOC_INSERT, PAGE, PAGE)
    unaligned = attempt(fallocate, fd, FALLOC_COLLAPSE, 1, 1)
    return [collapsed, first, inserted, read("f")[::PAGE], unaligned]


@rule(["ENOTSUP", "EINVAL", "EINVAL", "ENOTSUP"])
def fallocate_refuses_what_makes_no_sense() -> object:
    fd = _new(b"x" * PAGE)
    return [
        attempt(fallocate, fd, FALLOC_PUNCH_HOLE, 0, 1),
        attempt(fallocate, fd, 0, 0, 0),
        attempt(fallocate, fd, 0, -1, 1),
        attempt(fallocate, fd, 0x1000, 0, 1),
    ]


@rule([5, b"01234", 3, b"0123489a", 0, 16, "EINVAL", b"0123489a"])
def copy_file_range_copies() -> object:
    make("source", b"0123456789abcdef")
    source = os.open("source", os.O_RDWR)
    fd = _new()
    first = os.copy_file_range(source, fd, 5, 0, 0)
    content = read("f")
    second = os.copy_file_range(source, fd, 3, 8, 5)
    end = os.copy_file_range(source, fd, 10, 16, 0)
    longer = os.copy_file_range(source, fd, 100, 0, 100)
    overlap = result(os.copy_file_range, source, source, 4, 0, 2)
    return [first, content, second, read("f")[:8], end, longer, overlap, read("f")[:8]]


@rule([800, True, 800])
def appends_of_many_writers_are_whole() -> object:
    make("log")

    def writer(child: int) -> None:
        fd = os.open("log", os.O_WRONLY | os.O_APPEND)
        for number in range(200):
            os.write(fd, f"{child}:{number:04}".encode().ljust(64, b".") + b"\n")

    all_results([partial(writer, child) for child in range(4)])
    lines = read("log").splitlines()
    in_order = all(
        [line for line in lines if line.startswith(b"%d:" % child)]
        == sorted(line for line in lines if line.startswith(b"%d:" % child))
        for child in range(4)
    )
    return [len(lines), in_order, len(set(lines))]


@rule([b"headtail", b"headtailmore", 12])
def o_append_writes_at_the_end_wherever_the_offset_is() -> object:
    make("f", b"head")
    fd = os.open("f", os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"tail")
    first = read("f")
    other = os.open("f", os.O_WRONLY | os.O_APPEND)
    os.write(other, b"more")
    return [first, read("f"), os.lseek(fd, 0, os.SEEK_END)]


@rule([b"written", b"writTEN", True])
def a_shared_mapping_is_shared() -> object:
    fd = _new(bytes(PAGE))
    with mmap.mmap(fd, PAGE) as memory:
        memory[:7] = b"written"
        seen = os.pread(fd, 7, 0)

        def child() -> None:
            with mmap.mmap(os.open("f", os.O_RDWR), PAGE) as other:
                other[4:7] = other[4:7].upper()

        all_results([child])
        after = memory[:7]
        os.pwrite(fd, b"z", 100)
        return [seen, after, memory[100] == ord("z")]


@rule([b"new", b"new"])
def a_mapping_outlives_fd_and_name() -> object:
    fd = _new(b"old" + bytes(PAGE))
    memory = mmap.mmap(fd, PAGE)
    os.close(fd)
    os.link("f", "g")
    os.unlink("f")
    memory[:3] = b"new"
    memory.flush()
    seen = memory[:3]
    memory.close()
    return [seen, read("g")[:3]]


@rule([b"private", b"file da"])
def a_private_mapping_changes_nothing() -> object:
    fd = _new(b"file data")
    with mmap.mmap(fd, 9, flags=mmap.MAP_PRIVATE) as memory:
        memory[:7] = b"private"
        return [memory[:7], os.pread(fd, 7, 0)]


@rule([BIG, True, "ok"])
def large_writes_are_whole() -> object:
    data = os.urandom(BIG)
    fd = _new()
    written = os.write(fd, data)
    return [written, read("f") == data, attempt(os.fdatasync, fd)]


@rule([b"ABCDEF", 6, b"BCD", 6])
def vectors_are_gathered_and_scattered() -> object:
    fd = _new()
    written = os.writev(fd, [b"AB", b"", b"CDEF"])
    parts = [bytearray(2), bytearray(4)]
    got = os.preadv(fd, parts, 0)
    return [bytes(parts[0] + parts[1]), written, os.pread(fd, 3, 1), got]


@rule(["ok", "ok", "ok", "ok"])
def everything_can_be_synchronised() -> object:
    fd = _new(b"x")
    os.mkdir("d")
    directory = os.open("d", os.O_RDONLY)
    calls = [attempt(os.fsync, fd), attempt(os.fdatasync, fd)]
    return [*calls, attempt(os.fsync, directory), attempt(os.fdatasync, directory)]


@rule(["ok", True])
def o_direct_reads_what_was_written() -> object:
    with mmap.mmap(-1, 2 * PAGE) as buffer, mmap.mmap(-1, 2 * PAGE) as back:
        buffer[:] = os.urandom(2 * PAGE)
        fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
        wrote = attempt(os.pwritev, fd, [buffer], 0)
        os.preadv(fd, [back], 0)
        return [wrote, back[:] == buffer[:]]


# ---- directories ----


@rule([True, True, True, 300])
def a_directory_can_be_read_from_every_offset_it_returned() -> object:
    for number in range(300):
        os.mknod(f"file{number}")
    fd = os.open(".", os.O_RDONLY)
    entries = _rest(fd)
    again = True
    for index in (0, 1, 5, 150, len(entries) - 2):
        os.lseek(fd, entries[index][1], os.SEEK_SET)
        again = again and _rest(fd) == entries[index + 1 :]
    os.lseek(fd, 0, os.SEEK_SET)
    names = {entry[3] for entry in entries}
    return [again, _rest(fd) == entries, {b".", b".."} <= names, len(names) - 2]


def _rest(fd: int, size: int = 1024) -> list[tuple[int, int, int, bytes]]:
    found = []
    while some := getdents(fd, size):
        found += some
    return found


@rule([True, ["new", "old"]])
def rewinding_a_directory_shows_what_is_new() -> object:
    os.mknod("old")
    fd = os.open(".", os.O_RDONLY)
    _rest(fd)
    os.mknod("new")
    os.lseek(fd, 0, os.SEEK_SET)
    names = sorted(entry[3].decode() for entry in _rest(fd))
    return [names[:2] == [".", ".."], names[2:]]


@rule([True, {1: "fifo", 4: "dir", 8: "file", 10: "link", 12: "sock"}])
def directory_entries_have_type_and_inode() -> object:
    os.mkfifo("fifo")
    os.mkdir("dir")
    os.mknod("file")
    os.symlink("x", "link")
    os.mknod("sock", 0o140644)
    entries = [e for e in _rest(os.open(".", os.O_RDONLY)) if e[3] not in (b".", b"..")]
    same = all(os.lstat(name).st_ino == ino for ino, _, _, name in entries)
    return [same, {kind: name.decode() for _, _, kind, name in sorted(entries, key=lambda e: e[2])}]


@rule([500, True])
def names_that_were_read_can_be_removed_before_the_rest_is_read() -> object:
    for number in range(500):
        os.mknod(f"file{number:03}")
    fd = os.open(".", os.O_RDONLY)
    seen: list[bytes] = []
    while some := getdents(fd, 1024):
        names = [name for _, _, _, name in some if name not in (b".", b"..")]
        for name in names:
            os.unlink(name)
        seen += names
    return [len(set(seen)), os.listdir(".") == []]


@rule([2000, 2000])
def nothing_that_stays_is_lost_or_doubled_while_others_come_and_go() -> object:
    for number in range(2000):
        os.mknod(f"stays{number}")

    def disturb() -> None:
        for number in range(600):
            os.mknod(f"comes{number}")
            if number % 2:
                os.unlink(f"comes{number - 1}")

    child = Child(disturb)
    fd = os.open(".", os.O_RDONLY)
    names = [name for _, _, _, name in _rest(fd, 2048) if name.startswith(b"stays")]
    child.result()
    return [len(names), len(set(names))]


@rule([True, True])
def statvfs_reports_the_file_system_of_the_host() -> object:
    here, there = os.statvfs("."), os.statvfs(on_the_host("."))
    same = [
        getattr(here, name) == getattr(there, name)
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax")
    ]
    fd = os.open(".", os.O_RDONLY)
    return [all(same), os.fstatvfs(fd).f_blocks == here.f_blocks]


@rule([b"one", b"two", b"three, longer"])
def what_is_written_is_on_the_host_at_once() -> object:
    fd = _new(b"one")
    os.fsync(fd)
    first = read(on_the_host("f"))
    os.pwrite(fd, b"two", 0)
    os.fsync(fd)
    second = read(on_the_host("f"))
    os.pwrite(fd, b"three, longer", 0)
    os.close(fd)
    return [first, second, read(on_the_host("f"))]
