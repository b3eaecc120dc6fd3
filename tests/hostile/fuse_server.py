# SPDX-License-Identifier: Apache-2.0
"""A small FUSE file system of one directory, which does what no local file system does.

Its server is a thread of the test. The layouts are those of fuse.py, read from the server's side.
"""

import ctypes
import errno
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.conftest import require
from tests.waiting import HANG

from .fuse import (
    ATTR,
    ATTR_OUT,
    DIRENT,
    ENTRY,
    IN_HEADER,
    INIT_OUT,
    OPEN_OUT,
    OUT_HEADER,
    READ_IN,
    ROOT,
    STATFS_OUT,
    U64,
    Op,
)

BUFFER: Final = 1 << 20
DIRECTORY, FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
NO_ANSWER: Final = (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT)

Cookie = Callable[[int], int]


class FlatFileSystem:
    """Files with contents; `cookie(n)` is the directory offset after the n-th entry (from 1)."""

    pid = 0  # of the process that sent the latest request

    def __init__(self, files: dict[bytes, bytes], cookie: Cookie, name_max: int = 255) -> None:
        self.files = files
        self._cookie = cookie
        self._name_max = name_max
        self._numbers: dict[bytes, int] = {}
        self._ops: dict[int, Callable[[int, bytes], bytes]] = {
            Op.INIT: self._init,
            Op.LOOKUP: lambda _, body: self._entry(body[:-1]),
            Op.GETATTR: lambda node, _: ATTR_OUT.pack(0, 0, 0) + self._attr(node),
            Op.SETATTR: lambda node, _: ATTR_OUT.pack(0, 0, 0) + self._attr(node),
            Op.OPEN: lambda *_: OPEN_OUT.pack(1, 0, 0),
            Op.OPENDIR: lambda *_: OPEN_OUT.pack(1, 0, 0),
            Op.READ: self._read,
            Op.READDIR: self._list,
            Op.MKNOD: lambda _, body: self._make(body[16:-1]),
            Op.UNLINK: lambda _, body: self._unlink(body[:-1]),
            Op.RENAME: lambda _, body: self._rename(*body[8:-1].split(b"\0")),
            Op.RENAME2: lambda _, body: self._rename(*body[16:-1].split(b"\0")),
            Op.LINK: lambda _, body: self._link(U64.unpack_from(body)[0], body[8:-1]),
            Op.SETATTR: lambda node, _: ATTR_OUT.pack(0, 0, 0) + self._attr(node),
            Op.SETXATTR: lambda *_: b"",
            Op.REMOVEXATTR: lambda *_: b"",
            Op.STATFS: lambda *_: STATFS_OUT.pack(1, 1, 1, 1, 1, 4096, self._name_max, 4096, 0),
            Op.RELEASE: lambda *_: b"",
            Op.RELEASEDIR: lambda *_: b"",
        }

    def serve(self, fd: int) -> None:
        """Serve requests until the file system is unmounted."""
        while True:
            try:
                request = os.read(fd, BUFFER)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                return
            _, opcode, unique, node, uid, _, self.pid, *_ = IN_HEADER.unpack_from(request)
            if opcode == Op.INTERRUPT:
                self.interrupt(fd, *U64.unpack_from(request, IN_HEADER.size))
            if opcode not in NO_ANSWER:
                self.serve_one(fd, unique, opcode, node, uid, request[IN_HEADER.size :])

    def serve_one(
        self, fd: int, unique: int, opcode: int, node: int, uid: int, body: bytes
    ) -> None:
        answer, code = self._answer(opcode, node, uid, body)
        self.send(fd, unique, code, answer)

    def interrupt(self, fd: int, unique: int) -> None:
        """The process that made a request has received a signal."""

    def send(self, fd: int, unique: int, code: int, answer: bytes = b"") -> None:
        head = OUT_HEADER.pack(OUT_HEADER.size + len(answer), -code, unique)
        with suppress(OSError):
            os.write(fd, head + answer)

    def judge(self, opcode: int, uid: int) -> None:
        """Raise OSError if this user may not do this op. Every user may do everything here."""

    def _answer(self, opcode: int, node: int, uid: int, body: bytes) -> tuple[bytes, int]:
        try:
            self.judge(opcode, uid)
            return self._ops[opcode](node, body), 0
        except OSError as error:
            return b"", error.errno or errno.EIO
        except KeyError:
            return b"", errno.ENOSYS

    def _init(self, _: int, body: bytes) -> bytes:
        readahead = int.from_bytes(body[8:12], "little")
        flags = 1 << 22  # MAX_PAGES: without this flag Linux allows no long names
        return INIT_OUT.pack(7, 31, readahead, flags, 16, 12, 1 << 17, 1, 32, 0, 0, 0, 0)

    def _number(self, name: bytes) -> int:
        if name not in self.files:
            raise OSError(errno.ENOENT, name)
        return self._numbers.setdefault(name, ROOT + 1 + len(self._numbers))

    def _name(self, node: int) -> bytes:
        return next((name for name, number in self._numbers.items() if number == node), b"")

    def _attr(self, node: int) -> bytes:
        mode = DIRECTORY if node == ROOT else FILE
        size = 0 if node == ROOT else len(self.files.get(self._name(node), b""))
        return ATTR.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _entry(self, name: bytes) -> bytes:
        node = self._number(name)
        return ENTRY.pack(node, 0, 0, 0, 0, 0) + self._attr(node)

    def _read(self, node: int, body: bytes) -> bytes:
        offset, size = READ_IN.unpack_from(body)[1:3]
        return self.files[self._name(node)][offset : offset + size]

    def _list(self, _: int, body: bytes) -> bytes:
        offset, size = READ_IN.unpack_from(body)[1:3]
        names = list(self.files)
        start = next((n for n in range(len(names) + 1) if n and self._cookie(n) == offset), 0)
        if offset and not start:
            raise OSError(errno.EINVAL, "a cookie that no entry has")
        listing = b""
        for n, name in enumerate(names[start:], start + 1):
            entry = DIRENT.pack(self._number(name), self._cookie(n), len(name), stat.S_IFREG >> 12)
            entry += name + bytes(-len(name) % 8)
            if len(listing) + len(entry) > size:
                break
            listing += entry
        return listing

    def _make(self, name: bytes) -> bytes:
        if name in self.files:
            raise OSError(errno.EEXIST, name)
        self.files[name] = b""
        return self._entry(name)

    def _unlink(self, name: bytes) -> bytes:
        if self.files.pop(name, None) is None:
            raise OSError(errno.ENOENT, name)
        return b""

    def _link(self, node: int, name: bytes) -> bytes:
        self.files[name] = self.files[self._name(node)]
        self._numbers[name] = node
        return self._entry(name)

    def _rename(self, old: bytes, new: bytes) -> bytes:
        number = self._number(old)
        self.files[new] = self.files.pop(old)
        self._numbers[new] = number
        del self._numbers[old]
        return b""


@contextmanager
def served(file_system: FlatFileSystem, mount_point: Path) -> Iterator[Path]:
    """Mount the file system there for as long as the context lives."""
    require("root")
    require("/dev/fuse")
    mount_point.mkdir(exist_ok=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    server = threading.Thread(target=file_system.serve, args=(fd,), daemon=True)
    try:
        mounted = libc.mount(b"flat", bytes(mount_point), b"fuse", 0, options.encode())
        assert mounted == 0, os.strerror(ctypes.get_errno())
        server.start()
        yield mount_point
    finally:
        subprocess.run(["umount", "-l", mount_point], check=False)
        server.join(HANG)
        os.close(fd)
