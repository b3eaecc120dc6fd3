# SPDX-License-Identifier: Apache-2.0
"""The broker of file handles: asked by a worker that was taken over, and taken over itself."""

import array
import errno
import os
import random
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.sandbox_modes import SandboxMode, with_handles

from .conftest import OPTIONS, QUEUES, Folder
from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import GETATTR_IN, ROOT, Guest, Op
from .hung import stop
from .injector import AT_FDCWD, Injector, Killed, error_name, fds
from .test_taken_over import handle_of, is_root

LIMIT: Final = 512  # limit of open files of the daemon
# By sandbox mode: the option that starts a broker where that is not the default.
BY_NAME: Final = {"none": ("--inode-file-handles=signed",)}
CROWD: Final = 600  # number of files: more than there can be fds for
O_PATH: Final = 0o10000000
SIGN, OPEN = 1, 2
BATCH: Final = 63
# struct handle_identity, struct handle_request, struct handle_signature; the head of an answer.
IDENTITY: Final = struct.Struct("=QQIiI32sI")
REQUEST: Final = struct.Struct("=QIIQ")
SIGNATURE: Final = struct.Struct("=iIqQ")
ANSWER: Final = struct.Struct("=QiI")
ANSWER_MAX: Final = ANSWER.size + BATCH * (SIGNATURE.size + IDENTITY.size)
CMSG: Final = struct.Struct("=Qii")
MESSAGE: Final = struct.Struct("=QIIQQQQiI")  # struct msghdr
IOVEC: Final = struct.Struct("=QQ")


@pytest.fixture(scope="module")
def daemon(sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    limit, by_name = f"--rlimit-nofile={LIMIT}", BY_NAME.get(sandbox_mode.name, ())
    with Daemon(*OPTIONS, limit, *by_name, mode=sandbox_mode, is_shared_mount=True) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _with_a_broker(daemon: Daemon) -> None:
    await_all(daemon)


def await_all(daemon: Daemon) -> None:
    """Wait until guard, broker and deputy run, and the broker has confined itself."""

    def are_there() -> bool:
        with suppress(OSError):
            found = daemon.titled(" handles")
            parents = [int(status(pid, "PPid")) in found for pid in found]
            return sorted(parents) == [False, True, True] and len(set(map(filters, found))) == 2
        return False

    wait_until(are_there, 30, "guard, broker and deputy")


def filters(pid: int) -> int:
    return int(status(pid, "Seccomp_filters"))


def await_end(daemon: Daemon, pid: int) -> None:
    wait_until(lambda: pid not in daemon.titled(" handles"), 5, "the process is dead")


def guard_and_broker(daemon: Daemon) -> tuple[int, int]:
    """The pids of the broker's guard and of the broker."""
    await_all(daemon)
    found = daemon.titled(" handles")
    (guard,) = (pid for pid in found if int(status(pid, "PPid")) not in found)
    return guard, max(found, key=filters)


def deputy_of(daemon: Daemon) -> int:
    both = guard_and_broker(daemon)
    (deputy,) = (pid for pid in daemon.titled(" handles") if pid not in both)
    return deputy


def status(pid: int, key: str, field: int = 0) -> str:
    match = re.search(rf"^{key}:(.*)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None, key
    return match[1].split()[field]


def crowd(guest: Guest, folder: Folder, queue: int = 1) -> list[int]:
    """Make CROWD files known, so that the files that were known before have no fd any more."""
    for i in range(CROWD):
        (folder.path / f"crowd-{i}").touch()
    return [guest.lookup(folder.nodeid, b"crowd-%d" % i, queue).nodeid for i in range(CROWD)]


def demoted(guest: Guest, folder: Folder, name: str = "file") -> int:
    """The nodeid of a file with this name that is held by its handle alone."""
    (folder.path / name).write_text(name)
    crowd(guest, folder)
    return guest.lookup(folder.nodeid, name.encode()).nodeid


class Thief:
    """A worker that was taken over, and its socket to the broker."""

    def __init__(self, worker: Injector) -> None:
        self.worker = worker
        self._pool = int(status(int(status(worker.pid, "PPid")), "NSpid", -1))
        self.root = next(f for f, what in worker.fds().items() if is_root(worker.pid, f, what))
        sockets = [fd for fd, what in worker.fds().items() if what.startswith("socket:")]
        slot = int(re.findall(r"worker (\d+)", title(worker.pid))[0])
        self.sock = sorted(fd for fd in sockets if self._is_of_broker(fd))[slot]
        self._nonce = 0
        # The directory is on the share's own mount.
        self.home = self.open_in_share("", O_PATH | os.O_DIRECTORY)

    def _is_of_broker(self, fd: int) -> bool:
        """Is this fd a socket for packets, from a socket pair that the pool itself has made?"""
        return self._option(fd, socket.SO_TYPE) == socket.SOCK_SEQPACKET and (
            self._option(fd, socket.SO_PEERCRED) == self._pool
        )

    def _option(self, fd: int, option: int) -> int:
        value, size = bytearray(12), bytearray(struct.pack("=I", 12))
        result = self.worker.call("getsockopt", fd, socket.SOL_SOCKET, option, value, size)
        return int.from_bytes(value[:4], "little") if result == 0 else -1

    def send(self, data: bytes, fds: Sequence[int] = ()) -> int:
        control = b""
        if fds:
            content = array.array("i", fds).tobytes()
            head = CMSG.pack(CMSG.size + len(content), socket.SOL_SOCKET, socket.SCM_RIGHTS)
            control = head + content + bytes(-len(content) % 8)
        return self.worker.call("sendmsg", self.sock, self._message(data, control), MSG_FLAGS)

    def _message(self, data: bytes, control: bytes) -> int:
        """The address of a struct msghdr."""
        where = self.worker.address(data + bytes(8), 0)
        control_at = self.worker.address(control + bytes(8), 0x10000)
        iovec = self.worker.address(IOVEC.pack(where, len(data)), 0x20000)
        content = MESSAGE.pack(0, 0, 0, iovec, 1, control_at if control else 0, len(control), 0, 0)
        return self.worker.address(content, 0x30000)

    def receive(self) -> tuple[bytes, list[int]] | None:
        """A packet from the broker with its fds, if there is a packet."""
        message = self._message(bytes(ANSWER_MAX), bytes(64))
        size = self.worker.call("recvmsg", self.sock, message, MSG_FLAGS)
        if size < 0:
            assert size == -errno.EAGAIN
            return None
        where = self.worker.address(b"", 0)
        control = self.worker.read(self.worker.address(b"", 0x10000), 64)
        length = CMSG.unpack_from(control)[0]
        header = MESSAGE.unpack(self.worker.read(message, MESSAGE.size))
        content = control[CMSG.size : length] if header[6] else b""
        return self.worker.read(where, size), array.array("i", content).tolist()

    def ask(
        self,
        op: int,
        identity: bytes = bytes(IDENTITY.size),
        mac: int = 0,
        fds: Sequence[int] = (),
        home: int | None = None,
    ) -> tuple[int, bytes, list[int]]:
        """Send this request about the mount that `home` is on. Return: the error, the rest and the
        fds of the answer."""
        self._nonce += 1
        request = REQUEST.pack(self._nonce, op, 0, mac) + identity
        fds = [self.home if home is None else home, *fds]
        wait_until(lambda: self.send(request, fds) == len(request), 5, "the socket has room")
        while True:
            answer = self._await()
            nonce, error, _ = ANSWER.unpack_from(answer[0])
            if nonce == self._nonce:
                return error, answer[0][ANSWER.size :], answer[1]

    def _await(self) -> tuple[bytes, list[int]]:
        answers: list[tuple[bytes, list[int]]] = []

        def has_come() -> bool:
            if packet := self.receive():
                answers.append(packet)
            return bool(answers)

        wait_until(has_come, 5, "the broker answers")
        return answers[0]

    def sign(self, fd: int) -> tuple[int, bytes, int]:
        """Have the file of an fd signed. Return: the error, what was signed, and the signature."""
        error, rest, _ = self.ask(SIGN, fds=[fd])
        assert error == 0
        one_error, _, _, mac = SIGNATURE.unpack_from(rest)
        return one_error, rest[SIGNATURE.size :], mac

    def open(self, identity: bytes, mac: int) -> int:
        """Open a signed handle. Return: an fd, or -errno."""
        error, _, fds = self.ask(OPEN, identity, mac)
        return fds[0] if fds else error

    def open_in_share(self, path: str, flags: int = O_PATH) -> int:
        fd = self.worker.call("openat", self.root, path or ".", flags)
        assert fd >= 0, error_name(fd)
        return fd


MSG_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.fixture
def thief(daemon: Daemon, guest: Guest, folder: Folder) -> Iterator[Thief]:
    """The worker of queue 1, taken over. `folder` must come first, since queue 1 is not served from
    here on."""
    guest.getattr(folder.nodeid)
    pid = daemon.the("worker", "queue 1")
    with Injector(pid) as worker:
        before = worker.fds().keys()
        yield Thief(worker)
        for fd in worker.fds().keys() - before:
            worker.call("close", fd)


def fds_of(pid: int) -> list[str]:
    return sorted(str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())


# ---- what a worker that was taken over can reach ----


@with_handles
def test_it_opens_what_it_had_open_before(thief: Thief, folder: Folder) -> None:
    (folder.path / "file").touch()
    error, identity, mac = thief.sign(thief.open_in_share(f"{folder.path.name}/file"))
    assert error == 0
    fd = thief.open(identity, mac)
    assert Path(f"/proc/{thief.worker.pid}/fd/{fd}").samefile(folder.path / "file")
    info = Path(f"/proc/{thief.worker.pid}/fdinfo/{fd}").read_text()
    assert int(info.split("flags:")[1].split()[0], 8) & O_PATH


@with_handles
def test_it_opens_nothing_else(thief: Thief, folder: Folder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"  # a file on the same file system
    outside.touch()
    names = [f"{folder.path.name}/{name}" for name in "xy"]
    for name in names:
        (folder.path.parent / name).touch()
    (_, x, mac_x), (_, y, mac_y) = (thief.sign(thief.open_in_share(name)) for name in names)
    handle = handle_of(str(outside))
    size, kind = struct.unpack_from("=Ii", handle)
    fields = list(IDENTITY.unpack(x))
    fields[0], fields[3:6] = outside.stat().st_ino, [kind, size, handle[8 : 8 + size]]
    forged = {
        "another file's signature": (x, mac_y),
        "another file's handle": (y[: IDENTITY.size - 40] + x[-40:], mac_y),
        "a wrong bit": (x, mac_x ^ 1 << 17),
        "no signature": (x, 0),
        "outside of the share": (IDENTITY.pack(*fields), mac_x),
    }
    found = {name: error_name(thief.open(*attempt)) for name, attempt in forged.items()}
    assert found == dict.fromkeys(forged, "EACCES")


@with_handles
def test_what_is_not_of_the_share_is_not_signed(thief: Thief) -> None:
    others = {fd: what for fd, what in thief.worker.fds().items() if not what.startswith("/")}
    others |= {fd: what for fd, what in thief.worker.fds().items() if what.startswith("/memfd:")}
    proc = next(fd for fd, what in thief.worker.fds().items() if what.endswith("/fd"))
    for fd in (*others, proc):
        assert thief.sign(fd)[0] in (-errno.EOPNOTSUPP, -errno.EXDEV), others.get(fd)
    assert thief.ask(SIGN, fds=[proc], home=proc)[0] == -errno.EXDEV
    assert thief.ask(SIGN, fds=[thief.home], home=proc)[0] == -errno.EXDEV
    assert thief.sign(thief.home)[0] == 0


def test_a_handle_reaches_a_directory_moved_out_of_the_share_and_nothing_beside() -> None:
    """The handle of a directory that was moved out opens it; no file beside that directory is
    opened."""
    with Daemon("--inode-file-handles=signed") as daemon, Frontend(daemon.socket) as frontend:
        Guest(frontend.setup(1)).init()
        pid = daemon.the("worker 0")
        inside, outside = daemon.share / "directory", daemon.folder / "outside"
        for folder in (inside, outside):
            folder.mkdir()
        (inside / "file").touch()
        (outside / "secret").touch()
        with Injector(pid) as worker:
            thief = Thief(worker)
            kept = thief.open_in_share(inside.name, O_PATH | os.O_DIRECTORY)
            error, identity, mac = thief.sign(kept)
            inside.rename(outside / "directory")  # a link and not a copy: a copy is another file
            opened = thief.open(identity, mac)
            assert error == 0
            for fd in (kept, opened):
                assert thief.worker.call("openat", fd, "file", O_PATH) >= 0
                for path in ("..", "../secret", "../../outside/secret"):
                    assert error_name(worker.call("openat", fd, path, O_PATH)) == "ENOENT", path


def test_odd_messages_change_nothing(daemon: Daemon, thief: Thief, folder: Folder) -> None:
    """Each of 10,000 messages is a real message with one mistake; some carry fds, and none of the
    answers is read."""
    (folder.path / "file").touch()
    fd = thief.open_in_share(f"{folder.path.name}/file")
    _, identity, mac = thief.sign(fd)
    _, broker = guard_and_broker(daemon)
    before = fds_of(broker)
    chance = random.Random(4)  # noqa: S311
    for number in range(10_000):
        content = bytearray(REQUEST.pack(number, chance.randrange(5), 0, mac) + identity)
        for _ in range(chance.randrange(4)):
            content[chance.randrange(8, len(content))] ^= 1 << chance.randrange(8)
        length = chance.choice((len(content), chance.randrange(len(content)), 4096))
        message = bytes(content[:length]).ljust(length if length == 4096 else 0, b"x")
        fds = [fd] * chance.choice((0, 0, 0, 1, 2, BATCH + 1, BATCH + 2, 253))
        assert thief.send(message, fds) in (len(message), -errno.EAGAIN, -errno.ETOOMANYREFS)
        if number % 50 == 0:
            while thief.receive():
                pass
    while thief.receive():
        pass
    assert thief.sign(fd)[1:] == (identity, mac)
    assert guard_and_broker(daemon)[1] == broker
    wait_until(lambda: fds_of(broker) == before, 5, "all that was sent is closed")


@with_handles
def test_few_fds_wait_in_a_socket(daemon: Daemon, thief: Thief) -> None:
    """The fds count against a limit that all processes of a user share."""
    _, broker = guard_and_broker(daemon)
    request = REQUEST.pack(1, OPEN, 0, 0) + bytes(IDENTITY.size)
    stop(broker)
    try:
        sent = 0
        while thief.send(request, [thief.sock] * BATCH) == len(request):
            sent += 1
        assert 1 <= sent <= 8
    finally:
        os.kill(broker, signal.SIGCONT)


def test_answers_for_another_user_are_passed_over(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """A worker finds answers that it has not asked for, some of them with fds."""
    nodeid = demoted(guest, folder)
    pid = daemon.the("worker", "queue 1")
    with Injector(pid) as worker:
        left_behind = Thief(worker)
        root = left_behind.open_in_share("", O_PATH | os.O_DIRECTORY)
        _, identity, mac = left_behind.sign(root)
        for nonce in range(20):
            request = REQUEST.pack(nonce, OPEN, 0, mac) + identity
            while (sent := left_behind.send(request, [root])) == -errno.EAGAIN:
                time.sleep(0.01)  # the broker has not had the CPU yet
            assert sent == len(request)
        for fd in (root, left_behind.home):
            worker.call("close", fd)
    before = open_fds(daemon)
    assert guest.getattr(nodeid).ino == (folder.path / "file").stat().st_ino
    assert open_fds(daemon) <= before + 1


def open_fds(daemon: Daemon) -> int:
    pool = daemon.the("pool")
    return sum(1 for _ in Path(f"/proc/{pool}/fd").iterdir())


@with_handles
def test_a_worker_cannot_read_the_key(daemon: Daemon, thief: Thief) -> None:
    proc = next(fd for fd, what in thief.worker.fds().items() if what.endswith("/fd"))
    for pid in guard_and_broker(daemon):
        inside = status(pid, "NSpid", -1)
        for name in ("mem", "fd/0", "maps", "root/etc"):
            path = f"../../{inside}/{name}"
            opened = thief.worker.call("openat", proc, path, os.O_RDONLY)
            assert error_name(opened) in ("EACCES", "ENOENT", "EPERM"), name


def test_a_read_only_share_keeps_the_key_as_well() -> None:
    """The workers of a read-only share have the same capability as the broker."""
    with (
        Daemon("--readonly", "--inode-file-handles=signed") as daemon,
        Frontend(daemon.socket) as frontend,
    ):
        Guest(frontend.setup(1)).init()
        pid = daemon.the("worker 0")
        with Injector(pid) as worker:
            test_a_worker_cannot_read_the_key(daemon, Thief(worker))


# ---- a broker that was taken over ----

FORBIDDEN: Final[dict[str, tuple[Any, ...]]] = {
    "open for writing": ("openat", AT_FDCWD, "/x", os.O_RDWR, 0),
    "create": ("openat", AT_FDCWD, "/x", os.O_RDONLY | os.O_CREAT, 0o600),
    "open a handle for reading": ("open_by_handle_at", 0, bytes(16), os.O_RDONLY),
    "read": ("read", 0, bytearray(8), 8),
    "read a directory": ("getdents64", 0, bytearray(64), 64),
    "write": ("write", 0, b"x", 1),
    "a process": ("clone", int(signal.SIGCHLD), 0, 0, 0, 0),
    "a signal": ("kill", 1, 0),
    "a socket": ("socket", 1, 1, 0),
    "a program": ("execve", "/bin/true", 0, 0),
    "a debugger": ("ptrace", 16, 1, 0, 0),
    "unlink": ("unlinkat", AT_FDCWD, "/x", 0),
    "memory": ("mprotect", 0, 4096, 4),
}


def test_the_broker_may_do_nothing_but_open_handles() -> None:
    for name, attempt in FORBIDDEN.items():
        with Daemon("--inode-file-handles=signed") as daemon:
            await_all(daemon)
            _, broker = guard_and_broker(daemon)
            with pytest.raises(Killed) as killed, Injector(broker, borrow=True) as taken:
                taken.call(*attempt)
            assert killed.value.signal == signal.SIGSYS, name


@with_handles
def test_guard_and_broker_have_few_rights_and_few_fds(daemon: Daemon) -> None:
    guard, broker = guard_and_broker(daemon)
    for pid in (guard, broker):
        assert {key: status(pid, key) for key in ("CapPrm", "CapEff", "CapBnd", "CapInh")} == {
            "CapPrm": f"{4:016x}", "CapEff": f"{4:016x}", "CapBnd": f"{0:016x}",
            "CapInh": f"{0:016x}",
        }  # fmt: skip
        assert status(pid, "NoNewPrivs") == "1"
        (root,) = (fd for fd, what in fds(pid).items() if not what.startswith(("socket:", "pipe:")))
        assert Path(f"/proc/{pid}/fd/{root}").samefile(daemon.share)
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "vfsd-inodes" not in maps
    assert filters(broker) == filters(guard) + 1


# ---- deaths ----


def asked(guest: Guest, nodeid: int, queue: int = 1) -> int:
    """The inode number in the reply to GETATTR of this nodeid."""
    reply = guest.ask(Op.GETATTR, nodeid, GETATTR_IN.pack(0, 0, 0), room=104, queue=queue)
    assert not reply.error, errno.errorcode[reply.error]
    return int.from_bytes(reply.data[16:24], "little")


def wait_for_another_broker(daemon: Daemon, dead: int) -> None:
    def is_there() -> bool:
        found = daemon.titled(" handles")
        return len(found) == 3 and dead not in found

    wait_until(is_there, 10, "another broker")


def test_what_a_dead_broker_signed_is_opened_by_the_next(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    for _ in range(3):
        nodeid = demoted(guest, folder)
        _, broker = guard_and_broker(daemon)
        os.kill(broker, signal.SIGKILL)
        assert asked(guest, nodeid) == (folder.path / "file").stat().st_ino
        wait_for_another_broker(daemon, broker)


def test_what_was_signed_is_opened_after_the_guard_died(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """Guard, broker and deputy die in any order, one at a time, and all three are there again."""
    victims = (0, 0, 1, 2, 0, 2, 1, 0)
    for victim in victims:
        nodeid = demoted(guest, folder)
        pids = (*guard_and_broker(daemon), deputy_of(daemon))
        os.kill(pids[victim], signal.SIGKILL)
        assert asked(guest, nodeid) == (folder.path / "file").stat().st_ino
        wait_for_another_broker(daemon, pids[victim])
    assert "broker of file handles is gone" not in daemon.log.read_text()


def test_files_on_a_mount_in_the_share_are_signed_and_opened(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    (folder.path / "mount").mkdir()
    mount = folder.path / "mount"
    subprocess.run(["mount", "-t", "tmpfs", "inside", mount], check=True)
    try:
        (mount / "file").touch()
        crowd(guest, folder)
        home = guest.lookup(folder.nodeid, b"mount").nodeid
        nodeid = guest.lookup(home, b"file").nodeid
        for _ in range(2):
            assert asked(guest, nodeid) == (mount / "file").stat().st_ino
            crowd(guest, folder, queue=2)
            for known in crowd(guest, folder):
                guest.getattr(known)
            _, broker = guard_and_broker(daemon)
            os.kill(broker, signal.SIGKILL)
            wait_for_another_broker(daemon, broker)
        assert asked(guest, nodeid) == (mount / "file").stat().st_ino
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


@with_handles
@pytest.mark.parametrize("times", range(2))
def test_a_worker_is_killed_while_it_waits_for_the_broker(
    daemon: Daemon, guest: Guest, folder: Folder, times: int
) -> None:
    """A worker dies during OPEN, or during SIGN: its answer reaches no worker, and the guest's
    request is served by the next worker."""
    nodeid = demoted(guest, folder)
    (folder.path / "other").touch()
    guard, broker = guard_and_broker(daemon)
    stop(broker)
    try:
        if times:
            pending = guest.submit(Op.GETATTR, nodeid, GETATTR_IN.pack(0, 0, 0), room=104)
        else:
            pending = guest.submit(Op.LOOKUP, folder.nodeid, b"other\0", room=128)
        worker = daemon.the("worker", "queue 1")
        waits = Path(f"/proc/{worker}/syscall")
        wait_until(lambda: waits.read_text().startswith("7 "), 5, "the worker polls its socket")
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: worker not in daemon.titled("worker"), 5, "the worker is dead")
    finally:
        os.kill(broker, signal.SIGCONT)
    reply = guest.finish(pending)
    assert not reply.error
    found = int.from_bytes(reply.data[16:24] if times else reply.data[40:48], "little")
    assert found == (folder.path / ("file" if times else "other")).stat().st_ino
    assert guard_and_broker(daemon) == (guard, broker)
    for _ in range(10):
        assert asked(guest, nodeid) == (folder.path / "file").stat().st_ino


def start(*options: str) -> tuple[Daemon, Frontend, Guest]:
    daemon = Daemon(f"--rlimit-nofile={LIMIT}", *options)
    frontend = Frontend(daemon.socket).setup(QUEUES)
    guest = Guest(frontend)
    guest.init()
    return daemon, frontend, guest


def test_a_broker_that_fails_again_and_again_is_not_replaced_for_ever() -> None:
    """The share goes on with the fds that it already has."""
    daemon, frontend, guest = start()
    with daemon, frontend:
        (daemon.share / "file").touch()
        known = guest.lookup(ROOT, b"file").nodeid
        for _ in range(8):
            _, broker = guard_and_broker(daemon)
            os.kill(broker, signal.SIGSEGV)
            await_end(daemon, broker)
            wait_until(lambda: len(daemon.titled(" handles")) in (0, 3), 5, "a broker or none")
        assert not daemon.titled(" handles")
        wait_until(lambda: "broker of file handles is gone" in daemon.log.read_text(), 5, "a line")
        # The file is stale if it has no fd.
        guest.ask(Op.GETATTR, known, GETATTR_IN.pack(0, 0, 0), room=104)
        assert guest.lookup(ROOT, b"file").nodeid == known
        assert asked(guest, known)
        for i in range(CROWD):
            (daemon.share / f"f{i}").touch()
            reply = guest.ask(Op.LOOKUP, ROOT, b"f%d\0" % i, room=128)
            assert reply.error in (0, errno.ENFILE)
        # If the file was signed before, its fd is a cache, which is given up after a second.
        reply = guest.ask(Op.GETATTR, known, GETATTR_IN.pack(0, 0, 0), room=104)
        assert reply.error in (0, errno.ENFILE)


def test_the_broker_is_not_asked_in_vain_in_every_turn() -> None:
    """A guest holds more removed directories, which are not signed, than there should be fds."""
    daemon, frontend, guest = start()
    with daemon, frontend:
        for i in range(LIMIT // 2):
            guest.mkdir(ROOT, b"d%d" % i)
            (daemon.share / f"d{i}").rmdir()
        _, broker = guard_and_broker(daemon)
        wait_until(
            lambda: guest.getattr(ROOT) and switches(broker) > 100, 5, "the broker was asked"
        )
        before = switches(broker)
        for _ in range(20):
            guest.getattr(ROOT)
        assert switches(broker) - before < 500


def switches(pid: int) -> int:
    """The number of times that the process has waited."""
    return int(status(pid, "voluntary_ctxt_switches"))


def test_all_of_them_end_with_the_daemon() -> None:
    daemon, frontend, _ = start()
    with daemon, frontend:
        pids = daemon.titled(" handles")
        assert len(pids) == 3
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 5, "both end")


def test_without_namespaces_they_end_with_the_holder() -> None:
    daemon, frontend, _ = start("--sandbox=none", "--inode-file-handles=signed")
    with daemon, frontend:
        pids = daemon.titled(" handles")
        os.kill(daemon.the(" holder"), signal.SIGKILL)
        wait_until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 5, "no socket is left"
        )


# ---- the line at the start about inodes, and properties that users rely on ----


def said(share: Path, *options: str) -> tuple[str, bool]:
    """The line at the start about inodes, and whether a broker runs."""

    def lines(daemon: Daemon) -> list[str]:
        return [line for line in daemon.log.read_text().splitlines() if "inodes are held" in line]

    with Daemon(*options, share=share) as daemon:
        wait_until(lambda: bool(lines(daemon)), 5, "the line about inodes")
        (line,) = lines(daemon)
        return line, bool(daemon.titled(" handles"))


def test_the_share_that_is_a_file_system_needs_no_broker(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "whole", share], check=True)
    try:
        (share / "part").mkdir()
        whole, has_broker = said(share)
        assert not has_broker
        assert "handles reach only the share" in whole
        part, has_broker = said(share / "part")
        assert has_broker
        assert "tmpfs of whole" in part
        hazard, has_broker = said(share / "part", "--inode-file-handles=prefer")
        assert not has_broker
        assert "all that is beside the share on it" in hazard
        assert "--inode-file-handles=signed prevents that" in hazard
    finally:
        subprocess.run(["umount", "-l", share], check=True)


def test_17000_files_are_known_under_a_limit_of_20000() -> None:
    with Daemon("--rlimit-nofile=20000") as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(QUEUES))
        guest.init()
        for i in range(17_000):
            (daemon.share / str(i)).touch()
        nodeids = [guest.lookup(ROOT, b"%d" % i, 1 + i % QUEUES).nodeid for i in range(17_000)]
        assert len(set(nodeids)) == 17_000
        for i in range(0, 17_000, 100):
            assert asked(guest, nodeids[i]) == (daemon.share / str(i)).stat().st_ino
        assert [guest.lookup(ROOT, b"%d" % i).nodeid for i in range(0, 17_000, 7)] == nodeids[::7]


def test_a_large_listing_fits_into_few_fds() -> None:
    """READDIRPLUS as `find` does it, under a limit of fds, twice; the same files have the same
    nodeids."""
    daemon, frontend, guest = start()
    with daemon, frontend:
        for i in range(6_000):
            (daemon.share / str(i)).touch()
        listed = [
            {e.name: e.entry.nodeid for e in guest.list(ROOT, plus=True) if e.entry is not None}
            for _ in range(2)
        ]
        assert listed[0] == listed[1]
        assert len(listed[0]) >= 6_000
        assert open_fds(daemon) <= LIMIT
