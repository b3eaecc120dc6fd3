# SPDX-License-Identifier: Apache-2.0
"""One VM of a race: its queues, what replies said to it, and requests written in advance."""

import errno
import os
import random
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from .driver import Segment
from .fuse import (
    ATTR,
    ATTR_OUT,
    GETATTR_IN,
    IN_HEADER,
    OPEN_IN,
    OUT_HEADER,
    RELEASE_IN,
    ROOT,
    Attr,
    Entry,
    Guest,
    Op,
    Pending,
    Reply,
    parse_dirents,
)
from .race_checks import RaceError

CHANCE: Final = random.Random()  # noqa: S311 - no two races are the same


@dataclass
class Vm:
    """A guest with its queues, and the types and open files that replies have named."""

    guest: Guest
    queues: Sequence[int]
    types: dict[int, int] = field(default_factory=dict)  # nodeid -> S_IFMT
    opened: list[tuple[int, int]] = field(default_factory=list)  # pairs of nodeid and fh
    requests: int = 0
    opens: int = 0

    def begin(self, queue: int, op: int, nodeid: int, body: bytes, room: int = 512) -> Pending:
        self.requests += 1
        return self.guest.submit(op, nodeid, body, room=room, queue=queue, kick=False)

    def kick(self, queues: Sequence[int]) -> None:
        for queue in queues:
            self.guest.frontend.rings[queue].kick()

    def note_mode(self, nodeid: int, mode: int) -> None:
        """Note that a reply gives `nodeid` this mode."""
        if not nodeid:
            return
        before = self.types.setdefault(nodeid, stat.S_IFMT(mode))
        if before != stat.S_IFMT(mode):
            raise RaceError(f"nodeid {nodeid:#x} was of type {before:o}, and is now {mode:o}")

    def finish(self, pending: Pending) -> Reply:
        """Wait for a reply, and note what it says about files."""
        reply = self.guest.finish(pending, 60.0)
        if reply.error:
            return reply
        if pending.op in (Op.LOOKUP, Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK, Op.CREATE):
            entry = Entry.parse(reply.data)
            self.note_mode(entry.nodeid, entry.attr.mode)
        if pending.op == Op.CREATE:
            self.note_open(Entry.parse(reply.data).nodeid, reply.data[128:])
        if pending.op == Op.READDIRPLUS:
            self._take_listing(reply.data)
        return reply

    def _take_listing(self, data: bytes) -> None:
        for found in parse_dirents(data, plus=True):
            if found.entry is None or not found.entry.nodeid:
                continue
            self.note_mode(found.entry.nodeid, found.entry.attr.mode)
            if found.kind and found.kind != found.entry.attr.mode >> 12:
                raise RaceError(f"{found.name!r} is listed as {found.kind} beside {found.entry}")

    def note_open(self, nodeid: int, data: bytes) -> None:
        self.opens += 1
        self.opened.append((nodeid, int.from_bytes(data[:8], "little")))
        if self.types.get(nodeid, stat.S_IFREG) not in (stat.S_IFREG, stat.S_IFDIR):
            raise RaceError(f"nodeid {nodeid:#x} of type {self.types[nodeid]:o} was opened")

    def probe(self) -> None:
        """Open all files that replies have named, and ask for their attributes once more."""
        nodeids = list(self.types)
        for nodeid, reply in self._each(Op.GETATTR, nodeids, GETATTR_IN.pack(0, 0, 0)):
            if not reply.error:
                self.note_mode(nodeid, Attr(*ATTR.unpack_from(reply.data, ATTR_OUT.size)).mode)
        self.open_all(nodeids)

    def open_all(self, nodeids: Sequence[int]) -> None:
        """OPEN each of these nodeids for reading and writing."""
        for nodeid, reply in self._each(Op.OPEN, nodeids, OPEN_IN.pack(os.O_RDWR, 0)):
            if not reply.error:
                self.note_open(nodeid, reply.data)
            elif reply.error not in PROBE_ERRORS:
                what = f"OPEN of nodeid {nodeid:#x} of type {self.types[nodeid]:o}"
                raise RaceError(f"{what}: {os.strerror(reply.error)}")

    def _each(self, op: int, nodeids: Sequence[int], body: bytes) -> Iterator[tuple[int, Reply]]:
        """Send the same request for each nodeid, a few at a time."""
        for at in range(0, len(nodeids), 16):
            queue = CHANCE.choice(self.queues)
            sent = [(n, self.begin(queue, op, n, body)) for n in nodeids[at : at + 16]]
            self.kick([queue])
            for nodeid, pending in sent:
                yield nodeid, self.finish(pending)

    def forget_all(self) -> None:
        """Close every file and forget every nodeid, as often as replies can have counted it."""
        for nodeid, fh in self.opened:
            self.finish(self.send(Op.RELEASE, nodeid, RELEASE_IN.pack(fh, 0, 0, 0)))
        self.opened.clear()
        for nodeid in self.types:
            self.finish(self.send(Op.FORGET, nodeid, (1 << 40).to_bytes(8, "little")))
        self.types.clear()

    def send(self, op: int, nodeid: int, body: bytes) -> Pending:
        queue = 0 if op == Op.FORGET else CHANCE.choice(self.queues)
        pending = self.begin(queue, op, nodeid, body)
        self.kick([queue])
        return pending


# ENXIO: the file has another type; ESTALE: the file is gone, or a mixture of two files was found
# out. EACCES is what nodev answers when a device is opened, so EACCES is not in this list.
PROBE_ERRORS: Final = (errno.ENXIO, errno.ESTALE, errno.EISDIR, errno.ELOOP, errno.ENOENT)


class Batch:
    """Requests of one queue that are written once and sent as often as wanted.

    Building a request takes this driver longer than a worker needs to serve it. So races of a few
    microseconds are met only by requests that were written in advance.
    """

    def __init__(self, vm: Vm, queue: int, steps: Sequence[tuple[int, bytes]], room: int) -> None:
        self.vm, self.steps, self.room = vm, steps, OUT_HEADER.size + room
        self.ring = vm.guest.frontend.rings[queue]
        self._heads = [self._write(*step) for step in steps]
        self._chains = {head: self.ring.chains.pop(head) for head, _ in self._heads}

    def _write(self, op: int, body: bytes) -> tuple[int, int]:
        """Write one request into guest memory; return its head and the place of its reply."""
        memory = self.ring.memory
        length = IN_HEADER.size + len(body)
        request, reply = memory.alloc(length), memory.alloc(self.room)
        header = IN_HEADER.pack(length, op, 2, ROOT, 0, 0, os.getpid(), 0, 0)
        memory.write(request, header + body)
        parts = [
            Segment(request, IN_HEADER.size),
            Segment(request + IN_HEADER.size, len(body)),
            Segment(reply, OUT_HEADER.size, writable=True),
            Segment(reply + OUT_HEADER.size, self.room - OUT_HEADER.size, writable=True),
        ]
        avail = self.ring.avail_idx
        head = self.ring.submit(parts, indirect=True)
        self.ring.avail_idx = avail  # the head is not offered yet
        self.ring.tables.pop(head)  # its table is not freed either when the head is used
        return head, reply

    def start(self) -> None:
        self.ring.chains.update(self._chains)
        for head, _ in self._heads:
            self.ring.offer(head)
        self.ring.publish()
        self.vm.requests += len(self._heads)

    def finish(self) -> list[tuple[int, Reply]]:
        """Wait for all of the requests; return the opcode and the reply of each."""
        found = []
        for (op, _), (head, at) in zip(self.steps, self._heads, strict=True):
            data = self.ring.memory.read(at, self.ring.wait(head, 60.0))
            length, error, unique = OUT_HEADER.unpack_from(data)
            assert (length, unique) == (len(data), 2)
            found.append((op, Reply(-error, data[OUT_HEADER.size :])))
        self.ring.free = [index for index in self.ring.free if index not in self._chains]
        return found
