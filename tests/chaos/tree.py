# SPDX-License-Identifier: Apache-2.0
"""Random operations on a tree of files, each compared with a model in memory.

An operation that is lost, or done twice, shows in its outcome (mkdir that was done twice fails with
EEXIST), in a later outcome, or in the comparison of the whole tree at the end. The seed determines
the sequence of operations.
"""

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .workload import Steps

NAMES: Final = "abcdef"
DEPTH_MAX: Final = 3
SIZE_MAX: Final = 20_000
OPEN_MAX: Final = 4


@dataclass(eq=False)
class Directory:
    mode: int
    children: "dict[str, Node]" = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class File:
    mode: int
    data: bytearray = field(default_factory=bytearray)
    links: int = 1
    mtime: int | None = None  # nanoseconds; None: the host's clock
    xattrs: dict[str, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class Symlink:
    target: str


Node = Directory | File | Symlink


class Tree:
    """A tree below `path`, and its model."""

    def __init__(self, path: Path, chance: random.Random, steps: Steps) -> None:
        self._path = path
        self._chance = chance
        self._steps = steps
        self._root = Directory(0)
        self._open: list[tuple[int, File]] = []

    def run(self, count: int) -> None:
        """Do `count` operations, then compare everything."""
        names = (self._create, self._make, self._link, self._symlink, self._rename, self._remove)
        data = (self._write, self._append, self._truncate, self._read, self._sync)
        others = (self._list, self._chmod, self._times, self._set, self._unset, self._open_file)
        calls: list[Callable[[], None]] = [*names, *names, *data, *data, *others]
        try:
            for _ in range(count):
                self._chance.choice(calls)()
            self.check(self._path)
        finally:
            for fd, _ in self._open:
                with suppress(OSError):
                    os.close(fd)

    def check(self, path: Path) -> None:
        """Compare the tree at `path`, for example on the host, with the model."""
        self._check_directory(path, self._root)

    # ---- comparison ----

    def _attempt(
        self, expected: int, op: str, path: object, call: Callable[..., Any], *args: Any
    ) -> Any:
        """Call; the outcome must be `expected` (an errno, 0 for success)."""
        self._steps.next(op, path)
        try:
            result = call(*args)
        except OSError as error:
            if error.errno != expected:
                raise
            return None
        wanted = errno.errorcode.get(expected, "")
        assert not expected, f"{op} {path} succeeded; expected {wanted}"
        return result

    def _equal(self, what: str, path: object, got: object, wanted: object) -> None:
        self._steps.next(f"compare {what}", path)
        assert got == wanted, f"{what} of {path} is {got!r:.200}; expected {wanted!r:.200}"

    def _check_directory(self, path: Path, node: Directory) -> None:
        self._steps.next("listdir", path)
        self._equal("entries", path, sorted(os.listdir(path)), sorted(node.children))
        for name, child in node.children.items():
            if isinstance(child, Directory):
                self._check_directory(path / name, child)
            elif isinstance(child, Symlink):
                self._equal("target", path / name, os.readlink(path / name), child.target)
            else:
                self._check_file(path / name, child)
        if node is not self._root:
            self._check_attributes(path, node)

    def _check_file(self, path: Path, node: File) -> None:
        self._steps.next("read", path)
        data = path.read_bytes()
        self._equal("size", path, len(data), len(node.data))
        self._equal("data", path, data == node.data, True)
        status = path.stat()
        self._equal("links", path, status.st_nlink, node.links)
        if node.mtime is not None:
            self._equal("mtime", path, status.st_mtime_ns, node.mtime)
        self._check_attributes(path, node)

    def _check_attributes(self, path: Path, node: Directory | File) -> None:
        self._equal("mode", path, stat.S_IMODE(path.stat().st_mode), node.mode)
        found = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        self._equal("xattrs", path, found, node.xattrs)

    # ---- choices ----

    def _directory(self) -> tuple[Path, Directory, int]:
        path, node, depth = self._path, self._root, 0
        while depth < DEPTH_MAX - 1:
            below = [(n, c) for n, c in node.children.items() if isinstance(c, Directory)]
            if not below or self._chance.random() < 0.4:
                break
            name, node = self._chance.choice(below)
            path, depth = path / name, depth + 1
        return path, node, depth

    def _place(self) -> tuple[Path, Directory, str, Node | None]:
        """A name in a directory, and what the directory has under this name."""
        path, directory, _ = self._directory()
        name = self._chance.choice(NAMES)
        return path / name, directory, name, directory.children.get(name)

    def _existing(self, kind: type | tuple[type, ...]) -> tuple[Path, Any] | None:
        path, directory, _ = self._directory()
        found = [(n, c) for n, c in directory.children.items() if isinstance(c, kind)]
        if not found:
            return None
        name, node = self._chance.choice(found)
        return path / name, node

    def _bytes(self) -> bytes:
        return self._chance.randbytes(self._chance.randint(1, 3000))

    # ---- names ----

    def _create(self) -> None:
        path, directory, name, there = self._place()
        mode = self._chance.choice((0o600, 0o640, 0o755))
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        fd = self._attempt(errno.EEXIST if there else 0, "create", path, os.open, path, flags, mode)
        if fd is None:
            return
        data = self._bytes()
        try:
            directory.children[name] = File(mode, bytearray(data))
            self._attempt(0, "write", path, os.write, fd, data)
        finally:
            os.close(fd)

    def _make(self) -> None:
        path, directory, depth = self._directory()
        name = self._chance.choice(NAMES)
        path /= name
        if depth + 1 >= DEPTH_MAX:
            return
        expected = errno.EEXIST if name in directory.children else 0
        self._attempt(expected, "mkdir", path, os.mkdir, path, 0o755)
        if not expected:
            directory.children[name] = Directory(0o755)

    def _link(self) -> None:
        found = self._existing(File)
        path, directory, name, there = self._place()
        if not found:
            return
        expected = errno.EEXIST if there else 0
        self._attempt(expected, "link", path, os.link, found[0], path)
        if not expected:
            directory.children[name] = found[1]
            found[1].links += 1
            self._equal("links", path, os.stat(path).st_nlink, found[1].links)

    def _symlink(self) -> None:
        path, directory, name, there = self._place()
        target = "t" * self._chance.randint(1, 100)
        expected = errno.EEXIST if there else 0
        self._attempt(expected, "symlink", path, os.symlink, target, path)
        if not expected:
            directory.children[name] = Symlink(target)

    def _rename(self) -> None:
        source, from_directory, from_name, node = self._place()
        target, to_directory, to_name, there = self._place()
        if isinstance(node, Directory) and target.parent != source.parent:
            return  # the tree must not become deeper, and no directory may come into itself
        into_itself = target in source.parents
        expected = errno.ENOTEMPTY if node and into_itself else _rename_error(node, there)
        self._attempt(expected, "rename", f"{source} to {target}", os.rename, source, target)
        if expected or node is None or node is there:
            return
        if isinstance(there, File):
            there.links -= 1
        del from_directory.children[from_name]
        to_directory.children[to_name] = node

    def _remove(self) -> None:
        path, directory, name, there = self._place()
        if isinstance(there, Directory):
            expected = errno.ENOTEMPTY if there.children else 0
            self._attempt(expected, "rmdir", path, os.rmdir, path)
        else:
            expected = 0 if there else errno.ENOENT
            self._attempt(expected, "unlink", path, os.unlink, path)
            if isinstance(there, File):
                there.links -= 1
        if not expected:
            del directory.children[name]

    def _list(self) -> None:
        path, directory, _ = self._directory()
        self._steps.next("listdir", path)
        self._equal("entries", path, sorted(os.listdir(path)), sorted(directory.children))

    # ---- data ----

    def _with_file(self, flags: int, work: Callable[[int, Path, File], None]) -> None:
        """Work on a file that is open already, or is opened now."""
        if self._open and self._chance.random() < 0.4:
            fd, node = self._chance.choice(self._open)
            with self._losing(fd, node):
                work(fd, Path(f"fd {fd}"), node)
        elif found := self._existing(File):
            path, node = found
            fd = self._attempt(0, "open", path, os.open, path, flags)
            try:
                work(fd, path, node)
            finally:
                os.close(fd)

    @contextmanager
    def _losing(self, fd: int, node: File) -> Iterator[None]:
        """A file without a name is lost when a sandbox is lost, and then gives ESTALE for ever."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.ESTALE or node.links:
                raise
            self._steps.lost += 1
            self._open = [(other, file) for other, file in self._open if other != fd]
            with suppress(OSError):
                os.close(fd)

    def _write(self) -> None:
        def work(fd: int, path: Path, node: File) -> None:
            offset, data = self._chance.randint(0, SIZE_MAX), self._bytes()
            self._attempt(0, "pwrite", path, os.pwrite, fd, data, offset)
            node.data.extend(bytes(max(0, offset - len(node.data))))
            node.data[offset : offset + len(data)] = data
            node.mtime = None

        self._with_file(os.O_RDWR, work)

    def _append(self) -> None:
        """An append that was done twice shows in the size."""
        found = self._existing(File)
        if not found:
            return
        path, node = found
        data = self._bytes()
        fd = self._attempt(0, "open", path, os.open, path, os.O_WRONLY | os.O_APPEND)
        try:
            self._attempt(0, "append", path, os.write, fd, data)
            node.data += data
            node.mtime = None
            self._equal("size", path, os.fstat(fd).st_size, len(node.data))
        finally:
            os.close(fd)

    def _truncate(self) -> None:
        def work(fd: int, path: Path, node: File) -> None:
            size = self._chance.randint(0, SIZE_MAX)
            self._attempt(0, "ftruncate", path, os.ftruncate, fd, size)
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
            node.mtime = None

        self._with_file(os.O_RDWR, work)

    def _read(self) -> None:
        def work(fd: int, path: Path, node: File) -> None:
            offset, size = self._chance.randint(0, SIZE_MAX), self._chance.randint(1, 8000)
            data = self._attempt(0, "pread", path, os.pread, fd, size, offset)
            self._equal("data", path, data == node.data[offset : offset + size], True)

        self._with_file(os.O_RDWR, work)

    def _sync(self) -> None:
        def work(fd: int, path: Path, _: File) -> None:
            self._attempt(0, "fsync", path, os.fsync, fd)

        self._with_file(os.O_RDWR, work)

    def _open_file(self) -> None:
        """Keep a file open, also when its last name is removed."""
        if len(self._open) >= OPEN_MAX:
            fd, node = self._chance.choice(self._open)
            with self._losing(fd, node):
                self._equal("links", f"fd {fd}", os.fstat(fd).st_nlink, node.links)
                self._open.remove((fd, node))
                self._attempt(0, "close", f"fd {fd}", os.close, fd)
        elif found := self._existing(File):
            fd = self._attempt(0, "open", found[0], os.open, found[0], os.O_RDWR)
            self._open.append((fd, found[1]))

    # ---- attributes ----

    def _chmod(self) -> None:
        if found := self._existing((File, Directory)):
            path, node = found
            mode = self._chance.choice((0o700, 0o750, 0o755))
            self._attempt(0, "chmod", path, os.chmod, path, mode)
            node.mode = mode

    def _times(self) -> None:
        if found := self._existing(File):
            path, node = found
            when = self._chance.randrange(10**18)
            self._attempt(0, "utime", path, lambda: os.utime(path, ns=(when, when)))
            node.mtime = when

    def _set(self) -> None:
        if not (found := self._existing((File, Directory))):
            return
        path, node = found
        name, value = "user." + self._chance.choice(NAMES), self._bytes()[:200]
        flag = self._chance.choice((0, os.XATTR_CREATE, os.XATTR_REPLACE))
        expected = 0
        if flag == os.XATTR_CREATE and name in node.xattrs:
            expected = errno.EEXIST
        elif flag == os.XATTR_REPLACE and name not in node.xattrs:
            expected = errno.ENODATA
        self._attempt(expected, "setxattr", path, os.setxattr, path, name, value, flag)
        if not expected:
            node.xattrs[name] = value

    def _unset(self) -> None:
        if not (found := self._existing((File, Directory))):
            return
        path, node = found
        name = "user." + self._chance.choice(NAMES)
        expected = 0 if name in node.xattrs else errno.ENODATA
        self._attempt(expected, "removexattr", path, os.removexattr, path, name)
        node.xattrs.pop(name, None)


def _rename_error(node: Node | None, there: Node | None) -> int:
    """The errno of renaming `node` to the name of `there`; 0 for success."""
    if node is None:
        return errno.ENOENT
    if there is None or node is there:
        return 0
    if isinstance(there, Directory):
        if not isinstance(node, Directory):
            return errno.EISDIR
        return errno.ENOTEMPTY if there.children else 0
    return errno.ENOTDIR if isinstance(node, Directory) else 0
