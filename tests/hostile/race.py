# SPDX-License-Identifier: Apache-2.0
"""A fuzzer of races between queues: what one request sees of a file while another replaces it.

One or two VMs run programs of a few requests on several queues at once, on few names, in a file
system that gives a freed inode number to the next file. After each round these must hold:

* No fd of the pool or its workers is open for I/O on anything but a regular file or a directory of
  the share (/proc/PID/fd and fdinfo; an O_PATH fd may be of any file of the share).
* A nodeid has one type for its whole life, in every reply that mentions the nodeid.
* What a guest opened is what a reply to the guest called a regular file or a directory.
* Nothing beside the share has changed.

`python -m tests.hostile.race SECONDS [FILE-SYSTEM…]` runs the fuzzer for longer than the tests do.
"""

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.sandbox_modes import NAMESPACE, SANDBOX_MODES, SandboxMode

from .daemon import Daemon
from .driver import Frontend
from .file_systems import file_system
from .fuse import (
    CREATE_IN,
    LINK_IN,
    MKDIR_IN,
    MKNOD_IN,
    RENAME2_IN,
    RENAME_IN,
    ROOT,
    Entry,
    Guest,
    Op,
    Pending,
    names,
    read_in,
)
from .race_checks import RaceError, check_fds, picture
from .race_vm import CHANCE, Batch, Vm

FILE_SYSTEMS: Final = ("ext4", "xfs", "btrfs", "tmpfs")
# By sandbox mode: inode handles, number of VMs, and number of queues of each VM.
TRIED: Final[dict[str, list[tuple[str, int, int]]]] = {
    "namespace": [
        (handles, vms, queues)
        for handles in ("never", "signed", "prefer", "mandatory")
        for vms, queues in ((1, 3), (2, 1))
    ],
    "userns": [("never", 1, 3), ("never", 2, 1)],
    "chroot": [("signed", 1, 3), ("prefer", 2, 1)],
    "none": [("never", 1, 3), ("prefer", 2, 1)],
    "unprivileged": [("never", 1, 3)],
}
NAMES: Final = (b"a", b"b", b"c", b"d")
RING_SIZE: Final = 1024
# The limits make each file that is looked up be signed at once, and be opened by the broker when it
# is used.
FEW_FDS: Final = ("--rlimit-nofile=2000",)
CROWD: Final = 850
OPEN_MAX: Final = 200  # files that one VM keeps open before it closes all of them
DEVICE: Final = os.makedev(1, 7)  # /dev/full, which would do no harm if it were opened
RENAME_EXCHANGE: Final = 2

# ---- programs ----

Body = Callable[[bytes, bytes], tuple[int, bytes]]  # two names -> opcode, body


def _mknod(kind: int, device: int = 0) -> Body:
    return lambda a, _b: (Op.MKNOD, MKNOD_IN.pack(kind | 0o666, device, 0, 0) + names(a))


def _readdirplus(_a: bytes, _b: bytes) -> tuple[int, bytes]:
    return Op.READDIRPLUS, b""  # round() fills in the fh


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
DUEL_LOOKS, DUEL_CHANGES = 48, 12  # requests of each side in a duel


def _duel_looks(name: bytes) -> list[tuple[int, bytes]]:
    return [LOOKS["lookup"](name, b"")] * DUEL_LOOKS


def _duel_changes(name: bytes, replacer: str) -> list[tuple[int, bytes]]:
    """A name becomes in turns a regular file and something else."""
    turn = ("unlink", "mknod-regular", "unlink", replacer)
    return [CHANGES[step](name, b"x") for step in turn] * (DUEL_CHANGES // len(turn))


@dataclass
class Race:
    """The VMs on one share. Each VM has the root of the share open for listings."""

    vms: list[Vm]
    daemons: list[Daemon]
    outside: Path
    listing: list[int] = field(default_factory=list)  # by VM: the fh of the root
    rounds: int = 0
    _duels: list[list[Batch]] = field(default_factory=list)
    _before: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def start(self, crowd: int) -> None:
        """`crowd`: the number of files that every VM knows for as long as the race lasts."""
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
        """One queue replaces a file again and again while all other queues look the name up."""
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
                    side.vm.note_mode(entry.nodeid, entry.attr.mode)
                    if stat.S_ISREG(entry.attr.mode):
                        regular.add(entry.nodeid)
            side.vm.open_all(sorted(regular))

    def round(self) -> None:
        """One race: a name is made, then replaced on one queue while the other queues look at
        it."""
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
                    body = read_in(fh=self.listing[i], size=4096)
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
        """A new regular file with this name and an inode number that no known inode has."""
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
        """Open every file that a reply has named; then look from outside at what is open."""
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
    """The parameters of one run of the fuzzer."""

    kind: str  # kind of file system
    handles: str
    vms: int = 1
    queues: int = 3
    mode: SandboxMode = NAMESPACE

    def __str__(self) -> str:
        return (
            f"{self.kind}, {self.mode}, handles {self.handles},"
            f" {self.vms} VM x {self.queues} queues"
        )

    @property
    def folder(self) -> str:
        """The name of the directory that is shared."""
        return f"{self.mode.name}-{self.handles}-{self.vms}"


@contextlib.contextmanager
def race(setting: Setting, share: Path, outside: Path) -> Iterator[Race]:
    """Daemons and guests on `share`; `outside` is a folder that must not change."""
    options = ["--keep-listening", f"--inode-file-handles={setting.handles}"]
    options += FEW_FDS if setting.handles == "signed" else ()
    with contextlib.ExitStack() as stack:
        daemons = [
            stack.enter_context(Daemon(*options, share=share, mode=setting.mode))
            for _ in range(setting.vms)
        ]
        vms = []
        for daemon in daemons:
            frontend = stack.enter_context(Frontend(daemon.socket))
            guest = Guest(frontend.setup(setting.queues, RING_SIZE))
            vms.append(Vm(guest, range(1, setting.queues + 1)))
        running = Race(vms, daemons, outside)
        running.start(CROWD if setting.handles == "signed" else 0)
        yield running


def run(setting: Setting, share: Path, outside: Path, seconds: float) -> Race:
    """Race for `seconds`, and on a loaded machine until each VM has opened a file.

    Raises RaceError as soon as an invariant does not hold.
    """
    with race(setting, share, outside) as running:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or not all(vm.opens for vm in running.vms):
            for _ in range(10):
                running.duel()
            running.check()
            for _ in range(4):
                running.round()
            running.check()
        running.end()
        return running


def settings(kinds: Sequence[str] = FILE_SYSTEMS) -> list[Setting]:
    """Every file system, with all settings that are tried in each sandbox mode."""
    return [
        Setting(kind, *tried, SANDBOX_MODES[mode])
        for kind in kinds
        for mode, all_tried in TRIED.items()
        for tried in all_tried
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
                    share = mount_point / setting.folder
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
