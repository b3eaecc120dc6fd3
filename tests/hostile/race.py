# SPDX-License-Identifier: Apache-2.0
"""A fuzzer of races between queues: what one request sees of a file while another replaces it.

One or two VMs run programs of a few requests on several queues at once, on few names, in a file
system that gives a freed inode number to the next file. After each round these must hold:

* No fd of the pool or its workers is open for I/O on anything but a regular file or a directory of
  the share (/proc/PID/fd and fdinfo; an O_PATH fd may be of any file of the share).
* A nodeid has one type for its whole life, in every reply that mentions the nodeid.
* What a guest opened is what the guest was told to be a regular file or a directory.
* Nothing beside the share has changed.

`python -m tests.hostile.race SECONDS [FILE-SYSTEM…]` runs the fuzzer for longer than the tests do.
"""

import contextlib
import errno
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .daemon import Daemon
from .driver import Frontend, Segment
from .fuse import (
    ATTR,
    ATTR_OUT,
    CREATE_IN,
    GETATTR_IN,
    IN_HEADER,
    LINK_IN,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_IN,
    OUT_HEADER,
    READ_IN,
    RELEASE_IN,
    RENAME2_IN,
    RENAME_IN,
    ROOT,
    Attr,
    Entry,
    Guest,
    Op,
    Pending,
    Reply,
    names,
    parse_dirents,
)

FILE_SYSTEMS: Final = ("ext4", "xfs", "btrfs", "tmpfs")
HANDLE_MODES: Final = ("never", "signed", "prefer", "mandatory")
NAMES: Final = (b"a", b"b", b"c", b"d")
RING_SIZE: Final = 1024
# So that each file which is looked up is signed at once, and opened by the broker when it is used.
FEW_FDS: Final = ("--rlimit-nofile=2000",)
CROWD: Final = 850
OPEN_MAX: Final = 200  # files that one VM keeps open before it closes them all
DEVICE: Final = os.makedev(1, 7)  # /dev/full: harmless if it were opened
RENAME_EXCHANGE: Final = 2
CHANCE: Final = random.Random()  # noqa: S311 - what races is never the same twice


class RaceError(AssertionError):
    """An invariant does not hold."""


# ---- file systems ----


@contextlib.contextmanager
def file_system(kind: str, folder: Path) -> Iterator[Path]:
    """A new file system of this kind, mounted below `folder` for as long as the context lives."""
    mount_point = folder / kind
    mount_point.mkdir()
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", "size=64m", "race", str(mount_point))
    else:
        image = folder / f"{kind}.image"
        with image.open("wb") as file:
            file.truncate(512 << 20)
        _run(f"mkfs.{kind}", "-q", str(image))
        _run("mount", "-o", "loop", str(image), str(mount_point))
    try:
        yield mount_point
    finally:
        _run("umount", str(mount_point))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


# ---- what is checked from outside ----


def open_for_io(pid: int) -> Iterator[tuple[int, os.stat_result, str]]:
    """The fds of a process that are open for I/O on a file, each with its stat and its link."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            link = str(path.readlink())
            if not link.startswith("/") or link.startswith("/memfd:"):
                continue
            info = Path(f"/proc/{pid}/fdinfo/{path.name}").read_text()
            flags = int(info.split("flags:")[1].split()[0], 8)
            if not flags & os.O_PATH:
                yield int(path.name), path.stat(), link


def check_fds(daemon: Daemon) -> None:
    """Every file that the pool has open for I/O is a regular file or a directory of the share."""
    device = daemon.share.stat().st_dev
    for pid in daemon.titled("pool"):
        for fd, st, link in open_for_io(pid):
            # A subvolume of btrfs has a device number of its own; the tests make none.
            if st.st_dev != device or not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
                raise RaceError(f"fd {fd} of the pool is open on {link}, mode {st.st_mode:o}")


def picture(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every file in `folder`: mode, links, owner, size, time of the last change."""
    found: dict[str, tuple[int, ...]] = {}
    for path in folder.rglob("*"):
        st = path.lstat()
        found[str(path)] = (st.st_mode, st.st_nlink, st.st_uid, st.st_size, st.st_ctime_ns)
    return found


# ---- one VM ----


@dataclass
class Vm:
    """A guest with its queues, and what it was told."""

    guest: Guest
    queues: Sequence[int]
    types: dict[int, int] = field(default_factory=dict)  # nodeid -> S_IFMT
    opened: list[tuple[int, int]] = field(default_factory=list)  # nodeid, fh
    requests: int = 0
    opens: int = 0

    def begin(self, queue: int, op: int, nodeid: int, body: bytes, room: int = 512) -> Pending:
        self.requests += 1
        return self.guest.submit(op, nodeid, body, room=room, queue=queue, kick=False)

    def kick(self, queues: Sequence[int]) -> None:
        for queue in queues:
            self.guest.frontend.rings[queue].kick()

    def told(self, nodeid: int, mode: int) -> None:
        """A reply says that `nodeid` is of this mode."""
        if not nodeid:
            return
        before = self.types.setdefault(nodeid, stat.S_IFMT(mode))
        if before != stat.S_IFMT(mode):
            raise RaceError(f"nodeid {nodeid:#x} was told as {before:o}, now as {mode:o}")

    def finish(self, pending: Pending) -> Reply:
        """Wait for a reply and take in what it says of files."""
        reply = self.guest.finish(pending, 60.0)
        if reply.error:
            return reply
        if pending.op in (Op.LOOKUP, Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK, Op.CREATE):
            entry = Entry.parse(reply.data)
            self.told(entry.nodeid, entry.attr.mode)
        if pending.op == Op.CREATE:
            self.note_open(Entry.parse(reply.data).nodeid, reply.data[128:])
        if pending.op == Op.READDIRPLUS:
            self._take_listing(reply.data)
        return reply

    def _take_listing(self, data: bytes) -> None:
        for found in parse_dirents(data, plus=True):
            if found.entry is None or not found.entry.nodeid:
                continue
            self.told(found.entry.nodeid, found.entry.attr.mode)
            if found.kind and found.kind != found.entry.attr.mode >> 12:
                raise RaceError(f"{found.name!r} is listed as {found.kind} beside {found.entry}")

    def note_open(self, nodeid: int, data: bytes) -> None:
        self.opens += 1
        self.opened.append((nodeid, int.from_bytes(data[:8], "little")))
        if self.types.get(nodeid, stat.S_IFREG) not in (stat.S_IFREG, stat.S_IFDIR):
            raise RaceError(f"nodeid {nodeid:#x}, told as {self.types[nodeid]:o}, was opened")

    def probe(self) -> None:
        """Open all that the guest was told of, and ask for its attributes once more."""
        nodeids = list(self.types)
        for nodeid, reply in self._each(Op.GETATTR, nodeids, GETATTR_IN.pack(0, 0, 0)):
            if not reply.error:
                self.told(nodeid, Attr(*ATTR.unpack_from(reply.data, ATTR_OUT.size)).mode)
        self.open_all(nodeids)

    def open_all(self, nodeids: Sequence[int]) -> None:
        """OPEN each of them for reading and writing."""
        for nodeid, reply in self._each(Op.OPEN, nodeids, OPEN_IN.pack(os.O_RDWR, 0)):
            if not reply.error:
                self.note_open(nodeid, reply.data)
            elif reply.error not in PROBE_ERRORS:
                what = f"OPEN of nodeid {nodeid:#x}, told as {self.types[nodeid]:o}"
                raise RaceError(f"{what}: {os.strerror(reply.error)}")

    def _each(self, op: int, nodeids: Sequence[int], body: bytes) -> Iterator[tuple[int, Reply]]:
        """The same request of each node, a few at a time."""
        for at in range(0, len(nodeids), 16):
            queue = CHANCE.choice(self.queues)
            sent = [(n, self.begin(queue, op, n, body)) for n in nodeids[at : at + 16]]
            self.kick([queue])
            for nodeid, pending in sent:
                yield nodeid, self.finish(pending)

    def forget_all(self) -> None:
        """Close every file and forget every nodeid, each as often as it can have been told."""
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


# ENXIO: of another type; ESTALE: gone, or a mixture that was found out; EACCES is what nodev
# answers to the opening of a device, so it is not in this list.
PROBE_ERRORS: Final = (errno.ENXIO, errno.ESTALE, errno.EISDIR, errno.ELOOP, errno.ENOENT)


class Batch:
    """Requests of one queue that are written once and sent as often as wanted.

    Building a request takes this driver longer than a worker needs to serve the request, so races
    of a few microseconds are met only by requests that are there already.
    """

    def __init__(self, vm: Vm, queue: int, steps: Sequence[tuple[int, bytes]], room: int) -> None:
        self.vm, self.steps, self.room = vm, steps, OUT_HEADER.size + room
        self.ring = vm.guest.frontend.rings[queue]
        self._heads = [self._write(*step) for step in steps]
        self._chains = {head: self.ring.chains.pop(head) for head, _ in self._heads}

    def _write(self, op: int, body: bytes) -> tuple[int, int]:
        """Lay out one request; returns its head and where its reply comes."""
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
        self.ring.avail_idx = avail  # it is not offered yet
        self.ring.tables.pop(head)  # nor is its table given back when it is used
        return head, reply

    def start(self) -> None:
        self.ring.chains.update(self._chains)
        for head, _ in self._heads:
            self.ring.offer(head)
        self.ring.publish()
        self.vm.requests += len(self._heads)

    def finish(self) -> list[tuple[int, Reply]]:
        """Wait for all of them; returns opcode and reply of each."""
        found = []
        for (op, _), (head, at) in zip(self.steps, self._heads, strict=True):
            data = self.ring.memory.read(at, self.ring.wait(head, 60.0))
            length, error, unique = OUT_HEADER.unpack_from(data)
            assert (length, unique) == (len(data), 2)
            found.append((op, Reply(-error, data[OUT_HEADER.size :])))
        self.ring.free = [index for index in self.ring.free if index not in self._chains]
        return found


# ---- programs ----

Body = Callable[[bytes, bytes], tuple[int, bytes]]  # two names -> opcode, body


def _mknod(kind: int, device: int = 0) -> Body:
    return lambda a, _b: (Op.MKNOD, MKNOD_IN.pack(kind | 0o666, device, 0, 0) + names(a))


def _readdirplus(_a: bytes, _b: bytes) -> tuple[int, bytes]:
    return Op.READDIRPLUS, b""  # the fh is filled in


CHANGES: Final[dict[str, Body]] = {
    "mknod-fifo": _mknod(stat.S_IFIFO),
    "mknod-device": _mknod(stat.S_IFCHR, DEVICE),
    "mknod-regular": _mknod(stat.S_IFREG),
    "symlink": lambda a, b: (Op.SYMLINK, names(a, b"../" + b)),
    "mkdir": lambda a, _b: (Op.MKDIR, MKDIR_IN.pack(0o777, 0) + names(a)),
    "unlink": lambda a, _b: (Op.UNLINK, names(a)),
    "rmdir": lambda a, _b: (Op.RMDIR, names(a)),
    "rename": lambda a, b: (Op.RENAME, RENAME_IN.pack(ROOT) + names(a, b)),
    "exchange": lambda a, b: (Op.RENAME2, RENAME2_IN.pack(ROOT, RENAME_EXCHANGE, 0) + names(a, b)),
}
LOOKS: Final[dict[str, Body]] = {
    "lookup": lambda a, _b: (Op.LOOKUP, names(a)),
    "create": lambda a, _b: (
        Op.CREATE,
        CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o100666, 0, 0) + names(a),
    ),
    "readdirplus": _readdirplus,
}
REPLACERS: Final = ("mknod-fifo", "mknod-device", "symlink")
DUEL_LOOKS, DUEL_CHANGES = 48, 12  # requests of a duel, of each side


def _duel_looks(name: bytes) -> list[tuple[int, bytes]]:
    return [LOOKS["lookup"](name, b"")] * DUEL_LOOKS


def _duel_changes(name: bytes, replacer: str) -> list[tuple[int, bytes]]:
    """A name becomes a regular file and something else in turns."""
    turn = ("unlink", "mknod-regular", "unlink", replacer)
    return [CHANGES[step](name, b"x") for step in turn] * (DUEL_CHANGES // len(turn))


@dataclass
class Race:
    """The VMs on one share, whose root they all have open for listings."""

    vms: list[Vm]
    daemons: list[Daemon]
    outside: Path
    listing: list[int] = field(default_factory=list)  # by VM: fh of the root
    rounds: int = 0
    _duels: list[list[Batch]] = field(default_factory=list)
    _before: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def start(self, crowd: int) -> None:
        """`crowd`: so many files are known to every VM for as long as the race lasts."""
        self._before = picture(self.outside)
        for number in range(crowd):
            (self.daemons[0].share / f"crowd-{number}").touch()
        for vm in self.vms:
            vm.guest.init()
            for number in range(crowd):
                vm.guest.lookup(ROOT, b"crowd-%d" % number)
            self.listing.append(vm.guest.open(ROOT, os.O_RDONLY | os.O_DIRECTORY, op=Op.OPENDIR))
        seats = [(vm, queue) for vm in self.vms for queue in vm.queues]
        for number, replacer in enumerate(REPLACERS * 2):
            changing = seats[number % len(seats)]
            name = b"duel-" + replacer.encode()
            sides = [Batch(*changing, _duel_changes(name, replacer), 256)]
            sides += [Batch(*s, _duel_looks(name), 256) for s in seats if s != changing]
            self._duels.append(sides)

    def duel(self) -> None:
        """One queue replaces a file again and again while all others look the name up."""
        self.rounds += 1
        sides = CHANCE.choice(self._duels)
        CHANCE.shuffle(sides)
        for side in sides:
            side.start()
        for side in sides:
            side.ring.kick()
        for side in sides:
            regular = set()
            for _, reply in side.finish():
                if not reply.error and reply.data:
                    entry = Entry.parse(reply.data)
                    side.vm.told(entry.nodeid, entry.attr.mode)
                    if stat.S_ISREG(entry.attr.mode):
                        regular.add(entry.nodeid)
            side.vm.open_all(sorted(regular))

    def round(self) -> None:
        """One race: a name is made, then replaced on one queue while the others look at it."""
        self.rounds += 1
        name, other = CHANCE.sample(NAMES, 2)
        self._prepare(name)
        pending: list[tuple[Vm, Pending]] = []
        seats = [(i, vm, queue) for i, vm in enumerate(self.vms) for queue in vm.queues]
        CHANCE.shuffle(seats)
        for number, (i, vm, queue) in enumerate(seats):
            program = self._replacing() if number == 0 else self._looking()
            for step in program:
                opcode, body = (CHANGES | LOOKS)[step](name, other)
                if opcode == Op.READDIRPLUS:
                    body = READ_IN.pack(self.listing[i], 0, 4096, 0, 0, 0, 0)
                room = 4096 if opcode == Op.READDIRPLUS else 256
                pending.append((vm, vm.begin(queue, opcode, ROOT, body, room)))
        for _, vm, queue in seats:
            vm.kick([queue])
        for vm, request in pending:
            vm.finish(request)

    @staticmethod
    def _replacing() -> list[str]:
        if CHANCE.random() < 0.7:
            return ["unlink", CHANCE.choice(REPLACERS)]
        return CHANCE.choices(list(CHANGES), k=CHANCE.randint(1, 4))

    @staticmethod
    def _looking() -> list[str]:
        if CHANCE.random() < 0.6:
            return ["lookup"] * CHANCE.randint(1, 6)
        looks, changes = list(LOOKS), list(CHANGES)
        return [CHANCE.choice(looks if CHANCE.random() < 0.8 else changes) for _ in range(3)]

    def _prepare(self, name: bytes) -> None:
        """A new regular file of this name, whose number no known inode has."""
        vm = CHANCE.choice(self.vms)
        queue = CHANCE.choice(vm.queues)
        steps = [vm.begin(queue, Op.UNLINK, ROOT, names(name))]
        steps.append(vm.begin(queue, Op.RMDIR, ROOT, names(name)))
        kind = stat.S_IFREG | 0o666
        steps.append(vm.begin(queue, Op.MKNOD, ROOT, MKNOD_IN.pack(kind, 0, 0, 0) + names(name)))
        vm.kick([queue])
        made = [vm.finish(step) for step in steps][-1]
        if not made.error and CHANCE.random() < 0.8:
            nodeid = Entry.parse(made.data).nodeid
            vm.finish(vm.send(Op.FORGET, nodeid, (1 << 40).to_bytes(8, "little")))
            vm.types.pop(nodeid, None)
        if CHANCE.random() < 0.2:
            self._link(vm, queue, name)

    def _link(self, vm: Vm, queue: int, name: bytes) -> None:
        regular = [n for n, kind in vm.types.items() if kind == stat.S_IFREG]
        if regular:
            body = LINK_IN.pack(CHANCE.choice(regular)) + names(name + b"-link")
            pending = vm.begin(queue, Op.LINK, ROOT, body)
            vm.kick([queue])
            vm.finish(pending)
            unlink = vm.begin(queue, Op.UNLINK, ROOT, names(name + b"-link"))
            vm.kick([queue])
            vm.finish(unlink)

    def check(self) -> None:
        """Everything that was told is opened; then what is open is looked at from outside."""
        for vm in self.vms:
            vm.probe()
        for daemon in self.daemons:
            check_fds(daemon)
        for vm in self.vms:
            if len(vm.opened) > OPEN_MAX or CHANCE.random() < 0.5:
                vm.forget_all()

    def end(self) -> None:
        self.check()
        if picture(self.outside) != self._before:
            raise RaceError("something beside the share has changed")
        for vm in self.vms:
            vm.forget_all()

    @property
    def requests(self) -> int:
        return sum(vm.requests for vm in self.vms)


# ---- running it ----


@dataclass(frozen=True)
class Setting:
    """What one run of the fuzzer is set up with."""

    kind: str  # of file system
    handles: str
    vms: int = 1
    queues: int = 3
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}, handles {self.handles}, {self.vms} VM x {self.queues} queues"


@contextlib.contextmanager
def race(setting: Setting, share: Path, outside: Path) -> Iterator[Race]:
    """Daemons and guests on `share`; `outside` is a folder that must not change."""
    options = ("--keep-listening", f"--inode-file-handles={setting.handles}", *setting.options)
    with contextlib.ExitStack() as stack:
        daemons = [stack.enter_context(Daemon(*options, share=share)) for _ in range(setting.vms)]
        vms = []
        for daemon in daemons:
            frontend = stack.enter_context(Frontend(daemon.socket))
            guest = Guest(frontend.setup(setting.queues, RING_SIZE))
            vms.append(Vm(guest, range(1, setting.queues + 1)))
        running = Race(vms, daemons, outside)
        running.start(CROWD if setting.handles == "signed" else 0)
        yield running


def run(setting: Setting, share: Path, outside: Path, seconds: float) -> Race:
    """Race for so many seconds; RaceError as soon as an invariant does not hold."""
    with race(setting, share, outside) as running:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for _ in range(10):
                running.duel()
            running.check()
            for _ in range(4):
                running.round()
            running.check()
        running.end()
        return running


def settings(kinds: Sequence[str] = FILE_SYSTEMS) -> list[Setting]:
    """Every file system and handle mode, with one VM of several queues and with two VMs."""
    return [
        Setting(kind, handles, vms, queues, FEW_FDS if handles == "signed" else ())
        for kind in kinds
        for handles in HANDLE_MODES
        for vms, queues in ((1, 3), (2, 1))
    ]


def main(arguments: Sequence[str]) -> int:
    import tempfile  # noqa: PLC0415

    seconds, kinds = float(arguments[0]), tuple(arguments[1:]) or FILE_SYSTEMS
    todo = settings(kinds)
    with tempfile.TemporaryDirectory(prefix="vfsd-race-") as name:
        folder = Path(name)
        outside = folder / "outside"
        outside.mkdir()
        (outside / "victim").write_text("untouched")
        for kind in kinds:
            with file_system(kind, folder) as mount_point:
                for setting in (s for s in todo if s.kind == kind):
                    started = time.monotonic()
                    share = mount_point / f"{setting.handles}-{setting.vms}"
                    running = run(setting, share, outside, seconds / len(todo))
                    opens = sum(vm.opens for vm in running.vms)
                    took = time.monotonic() - started
                    print(
                        f"{setting}: {running.rounds} rounds, {running.requests} requests,"
                        f" {opens} opens, {took:.0f} s",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
