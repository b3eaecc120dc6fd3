# SPDX-License-Identifier: Apache-2.0
"""The operations that a load can consist of: one row of OPS for each, and the files it needs.

All of it happens in a new directory of the share, through ordinary FUSE requests, and undo()
removes the directory. So the benchmark works with any back-end and without access to the shared
directory.
"""

import os
import struct as binary
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final, Self

from vfsd.bench.load import ROOT, LoadSession, Plan, Step, struct
from vfsd.frontend.guest_memory import PAGE
from vfsd.transport.errors import OperatorError
from vfsd.transport.native import ffi, lib

CACHED_BYTES: Final = 32 << 20
COLD_BYTES: Final = 128 << 20
CHUNK: Final = 128 << 10  # bytes of each write that fills a file
MANY: Final = 4096  # files to look up in turn
LISTED: Final = 2000  # entries of a directory to list
NEW_NAMES: Final = 1_000_000
USER: Final = 1000
NULL_OPCODE: Final = 4000  # an opcode that no back-end knows
XATTR: Final = b"user.vfsd"
_DIGITS: Final = "0" * 7

ENTRY: Final = ffi.sizeof("struct fuse_entry_out")
DIRENT: Final = 24 + 8  # bytes of an entry whose name is as long as the listed ones
ATTR: Final = ffi.sizeof("struct fuse_attr_out")
OPEN: Final = ffi.sizeof("struct fuse_open_out")
WRITTEN: Final = ffi.sizeof("struct fuse_write_out")
ANY: Final = -1
NODE, FH, NAME = lib.LOAD_NODE, lib.LOAD_FH, lib.LOAD_NAME


@dataclass(frozen=True)
class File:
    """A file or directory that a load works on."""

    node: int
    ino: int
    fh: int = 0


class Share:
    """A directory in the share that the benchmark makes for itself."""

    def __init__(self, session: LoadSession) -> None:
        self.session = session
        self._undo = ExitStack()
        self._names = 0
        self.folder = self.new_folder(ROOT)
        # Every user may create files in it.
        body = struct("fuse_setattr_in", valid=1, mode=0o40777)
        session.call(lib.FUSE_SETATTR, self.folder, body)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._undo.close()
            return
        # The first error matters; errors while undoing after it do not.
        with suppress(OperatorError):
            self._undo.close()

    def new_folder(self, parent: int) -> int:
        name = self._name()
        body = struct("fuse_mkdir_in", mode=0o777) + name
        entry = self.session.call(lib.FUSE_MKDIR, parent, body)
        self._undo.callback(self.session.call, lib.FUSE_RMDIR, parent, name)
        return _file(entry).node

    def new_file(self, size: int = 0, keep_open: bool = True) -> tuple[bytes, File]:
        """A file in which each page begins with its offset."""
        name = self._name()
        reply = self.session.call(lib.FUSE_CREATE, self.folder, create_body() + name)
        self._undo.callback(self.session.call, lib.FUSE_UNLINK, self.folder, name)
        node = _file(reply)
        file = File(node.node, node.ino, int.from_bytes(reply[ENTRY : ENTRY + 8], "little"))
        for offset in range(0, size, CHUNK):
            self.session.call(lib.FUSE_WRITE, file.node, _write_body(file.fh, offset, CHUNK))
        if keep_open:
            self._undo.callback(self._release, lib.FUSE_RELEASE, file)
        else:
            self._release(lib.FUSE_RELEASE, file)
        return name, file

    def open_again(self, file: File, opcode: int, flags: int) -> File:
        body = struct("fuse_open_in", flags=flags)
        reply = self.session.call(opcode, file.node, body)
        opened = File(file.node, file.ino, int.from_bytes(reply[:8], "little"))
        closing = lib.FUSE_RELEASEDIR if opcode == lib.FUSE_OPENDIR else lib.FUSE_RELEASE
        self._undo.callback(self._release, closing, opened)
        return opened

    def fill_folder(self, count: int) -> int:
        """A new directory with files `f0000000` and so on that the back-end has not looked up."""
        folder = self.new_folder(self.folder)
        self.session.repeat(
            Plan([*_create(folder, 0), _release(lib.LOAD_FORGET)], names=count), count
        )
        # The C virtiofsd removes only names whose inode it has looked up.
        removal = Plan(
            [_lookup_step(folder), _unlink(folder, 0, more=lib.LOAD_FORGET)], names=count
        )
        self._undo.callback(self.session.repeat, removal, count)
        return folder

    def _release(self, opcode: int, file: File) -> None:
        self.session.call(opcode, file.node, struct("fuse_release_in", fh=file.fh))

    def _name(self) -> bytes:
        self._names += 1
        return f".vfsd-bench-{os.getpid()}-{self._names}".encode() + b"\0"


def _file(entry: bytes) -> File:
    """The File with the node and inode number of a fuse_entry_out."""
    node, ino = binary.unpack_from("<Q32xQ", entry)
    return File(node, ino)


def create_body() -> bytes:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    return struct("fuse_create_in", flags=flags, mode=0o100644)


def _write_body(fh: int, offset: int, size: int) -> bytes:
    pages = range(offset, offset + size, PAGE)
    data = b"".join(binary.pack("<Q", page) + bytes(PAGE - 8) for page in pages)
    return struct("fuse_write_in", fh=fh, offset=offset, size=size) + data


def _numbered(body: bytes = b"") -> tuple[bytes, int]:
    """An argument that ends with a numbered name, and the offset of the digits."""
    return body + b"f" + _DIGITS.encode() + b"\0", len(body) + 1


def _create(folder: int, uid: int) -> list[Step]:
    body, digits = _numbered(create_body())
    learn = lib.LOAD_LEARN_NODE | lib.LOAD_LEARN_FH
    return [Step(lib.FUSE_CREATE, folder, body, NAME | learn, 0, ENTRY + OPEN, digits, uid=uid)]


def _release(more: int = 0) -> Step:
    flags = NODE | FH | more
    return Step(lib.FUSE_RELEASE, 0, struct("fuse_release_in", flags=os.O_RDWR), flags)


def _unlink(folder: int, uid: int, opcode: int = lib.FUSE_UNLINK, more: int = 0) -> Step:
    body, digits = _numbered()
    return Step(opcode, folder, body, NAME | more, digits=digits, uid=uid)


def _lookup_step(folder: int, more: int = 0) -> Step:
    body, digits = _numbered()
    flags = NAME | lib.LOAD_LEARN_NODE | more
    return Step(lib.FUSE_LOOKUP, folder, body, flags, reply=ENTRY, digits=digits)


# --- the operations: functions from a share to the plan of each stream ---------------------------

PlanOf = Callable[[int], Plan]


def _same(plan: Plan) -> PlanOf:
    return lambda _stream: plan


def _null(_share: Share) -> PlanOf:
    return _same(Plan([Step(NULL_OPCODE, ROOT, bytes(16), error=-38)]))


def _getattr(share: Share) -> PlanOf:
    _, file = share.new_file()
    body = struct("fuse_getattr_in")
    return _same(Plan([Step(lib.FUSE_GETATTR, file.node, body, reply=ATTR, ino=file.ino)]))


def _lookup(share: Share) -> PlanOf:
    name, file = share.new_file()
    flags = lib.LOAD_LEARN_NODE
    step = Step(lib.FUSE_LOOKUP, share.folder, name, flags, reply=ENTRY, ino=file.ino)
    return _same(Plan([step]))


def _lookup_new(share: Share) -> PlanOf:
    folder = share.fill_folder(MANY)
    return _same(Plan([_lookup_step(folder, lib.LOAD_FORGET)], names=MANY))


def _lookup_nothing(share: Share) -> PlanOf:
    body, digits = _numbered()
    return _same(
        Plan([Step(lib.FUSE_LOOKUP, share.folder, body, NAME, -2, digits=digits)], names=NEW_NAMES)
    )


def _read(size: int, random: bool = True) -> Callable[[Share], PlanOf]:
    def plan_of(share: Share) -> PlanOf:
        return _same(read_plan(share.new_file(CACHED_BYTES)[1], size, CACHED_BYTES, random))

    return plan_of


def read_plan(file: File, size: int, total: int, random: bool = True) -> Plan:
    flags = (lib.LOAD_RANDOM if random else lib.LOAD_SEQUENTIAL) | lib.LOAD_STAMPED
    body = struct("fuse_read_in", fh=file.fh, size=size)
    step = Step(lib.FUSE_READ, file.node, body, flags, reply=size)
    return Plan([step], block=size, blocks=total // size)


def _read_cold(share: Share) -> PlanOf:
    return _same(read_plan(cold_file(share), PAGE, COLD_BYTES))


def cold_file(share: Share) -> File:
    """A file opened with O_DIRECT: each read of its data goes to the disk."""
    _, file = share.new_file(COLD_BYTES)
    share.session.call(lib.FUSE_FSYNC, file.node, struct("fuse_fsync_in", fh=file.fh))
    return share.open_again(file, lib.FUSE_OPEN, os.O_RDONLY | os.O_DIRECT)


def _write(size: int) -> Callable[[Share], PlanOf]:
    def plan_of(share: Share) -> PlanOf:
        _, file = share.new_file(CACHED_BYTES)
        step = write_step(file, size)
        return _same(Plan([step], block=size, blocks=CACHED_BYTES // size))

    return plan_of


def write_step(file: File, size: int) -> Step:
    return Step(
        lib.FUSE_WRITE, file.node, _write_body(file.fh, 0, size), lib.LOAD_RANDOM, reply=WRITTEN
    )


def _write_fsync(share: Share) -> PlanOf:
    _, file = share.new_file(CACHED_BYTES)
    return _same(fsync_plan(file, PAGE))


def fsync_plan(file: File, size: int) -> Plan:
    fsync = Step(lib.FUSE_FSYNC, file.node, struct("fuse_fsync_in", fh=file.fh))
    return Plan([write_step(file, size), fsync], block=size, blocks=CACHED_BYTES // size)


def _create_unlink(uid: int) -> Callable[[Share], PlanOf]:
    def plan_of(share: Share) -> PlanOf:
        folder = share.new_folder(share.folder)
        _open_to_all(share, folder)
        remove = _unlink(folder, uid, more=lib.LOAD_FORGET)
        return _same(Plan([*_create(folder, uid), _release(), remove], names=NEW_NAMES))

    return plan_of


def _open_to_all(share: Share, folder: int) -> None:
    body = struct("fuse_setattr_in", valid=1, mode=0o40777)
    share.session.call(lib.FUSE_SETATTR, folder, body)


def _mkdir_rmdir(uid: int) -> Callable[[Share], PlanOf]:
    def plan_of(share: Share) -> PlanOf:
        folder = share.new_folder(share.folder)
        _open_to_all(share, folder)
        body, digits = _numbered(struct("fuse_mkdir_in", mode=0o755))
        flags = NAME | lib.LOAD_LEARN_NODE
        make = Step(lib.FUSE_MKDIR, folder, body, flags, 0, ENTRY, digits, uid=uid)
        remove = _unlink(folder, uid, lib.FUSE_RMDIR, lib.LOAD_FORGET)
        return _same(Plan([make, remove], names=NEW_NAMES))

    return plan_of


def _open_release(share: Share) -> PlanOf:
    _, file = share.new_file(keep_open=False)
    opening = Step(lib.FUSE_OPEN, file.node, struct("fuse_open_in"), lib.LOAD_LEARN_FH, reply=OPEN)
    release = Step(lib.FUSE_RELEASE, file.node, struct("fuse_release_in"), FH)
    return _same(Plan([opening, release]))


def _getxattr(share: Share) -> PlanOf:
    _, file = share.new_file()
    session, name = share.session, XATTR + b"\0"
    body = struct("fuse_setxattr_in", size=8)[:8]  # without SETXATTR_EXT
    session.call(lib.FUSE_SETXATTR, file.node, body + name + b"12345678")
    body = struct("fuse_getxattr_in", size=64) + name
    return _same(Plan([Step(lib.FUSE_GETXATTR, file.node, body, reply=8)]))


def _list(size: int, cold: bool) -> Callable[[Share], PlanOf]:
    """Each stream lists a directory of its own, so that a FORGET of one stream does not affect
    entries that another stream knows."""
    flags = lib.LOAD_LIST | (lib.LOAD_FORGET if cold else 0)

    def plan_of(share: Share) -> PlanOf:
        def plan(_stream: int) -> Plan:
            folder = File(share.fill_folder(LISTED), 0)
            opened = share.open_again(folder, lib.FUSE_OPENDIR, os.O_RDONLY | os.O_DIRECTORY)
            body = struct("fuse_read_in", fh=opened.fh, size=size)
            return Plan([Step(lib.FUSE_READDIRPLUS, folder.node, body, flags, reply=ANY)],
                        fh=opened.fh)  # fmt: skip

        return plan

    return plan_of


@dataclass(frozen=True)
class Op:
    """An operation that a load can consist of. `options`: the options (-o) that the back-end
    needs."""

    name: str
    summary: str
    plan_of: Callable[[Share], PlanOf]
    pages: int = 32
    options: tuple[str, ...] = ()
    # Compare on a memory file system. ext4 does not reuse an inode that was deleted within the last
    # five seconds and searches longer and longer for another inode: only this search would be
    # measured.
    in_memory: bool = False


OPS: Final = {
    op.name: op
    for op in (
        Op("null", "an opcode that no back-end knows: the transport alone", _null),
        Op("getattr", "GETATTR of an open file", _getattr),
        Op("lookup", "LOOKUP of an inode that is known", _lookup),
        Op("lookup-new", f"LOOKUP and FORGET over {MANY} files", _lookup_new),
        Op("lookup-nothing", "LOOKUP of names that do not exist", _lookup_nothing),
        Op("open", "OPEN and RELEASE of a file that is not open", _open_release),
        Op("create", "CREATE, RELEASE, UNLINK, FORGET as root", _create_unlink(0), in_memory=True),
        Op("create-user", "the same as uid 1000", _create_unlink(USER), in_memory=True),
        Op("mkdir", "MKDIR, RMDIR, FORGET as root", _mkdir_rmdir(0), in_memory=True),
        Op("mkdir-user", "the same as uid 1000", _mkdir_rmdir(USER), in_memory=True),
        Op("getxattr", "GETXATTR of 8 bytes", _getxattr, options=("xattr",)),
        Op("read-4k", "READ of cached data, anywhere", _read(PAGE)),
        Op("read-128k", "the same, 128 KiB", _read(128 << 10)),
        Op("read-1m", "the same, 1 MiB", _read(1 << 20), pages=256),
        Op("read-cold", "READ of 4 KiB with O_DIRECT", _read_cold, options=("allow_direct_io",)),
        Op("write-4k", "WRITE to cached data, anywhere", _write(PAGE)),
        Op("write-128k", "the same, 128 KiB", _write(128 << 10)),
        Op("write-1m", "the same, 1 MiB", _write(1 << 20), pages=256),
        Op("write-fsync", "WRITE of 4 KiB and FSYNC", _write_fsync),
        Op("readdirplus-4k", "READDIRPLUS, known entries", _list(4 << 10, False)),
        Op("readdirplus-128k", "the same, 128 KiB at once", _list(128 << 10, False)),
        Op("readdirplus-cold-4k", "READDIRPLUS, new entries, and FORGET", _list(4 << 10, True)),
        Op("readdirplus-cold-128k", "the same, 128 KiB at once", _list(128 << 10, True)),
    )
}


def set_plans(share: Share, ops: list[Op]) -> None:
    """Give each stream of each queue one of `ops`, in turn."""
    shape = share.session.shape
    makers = {(queue, op.name): op.plan_of(share) for queue in range(shape.queues) for op in ops}
    plans = {}
    for queue in range(shape.queues):
        for stream in range(shape.depth):
            op = ops[stream % len(ops)]
            plans[queue, stream] = makers[queue, op.name](stream)
    # Only now: the functions that make the plans may use the streams themselves.
    for (queue, stream), plan in plans.items():
        share.session.set_plan(queue, stream, plan)


def pages_of(ops: list[Op]) -> int:
    return max(op.pages for op in ops)
