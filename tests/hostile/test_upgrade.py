# SPDX-License-Identifier: Apache-2.0
"""An upgrade of a daemon while a guest uses its share: the next version takes its place.

The next version is a whole new daemon. What the guest knows and has open works as before, also a
file without a name and a lock, and nothing that fails before the switch changes anything.
"""

import errno
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock, lockf
from pathlib import Path

import psutil
import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode
from tests.waiting import HANG
from vfsd.control.client import Client
from vfsd.control.instances import instance_of, instances

from .conftest import OPTIONS, QUEUES, Folder
from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Dirent, Guest, Op, expect, names
from .test_ops_files import F_UNLCK, F_WRLCK, expect_success, lock
from .test_sandbox_lost import lose_sandbox

VFSD = str(Path(sys.executable).parent / "vfsd")
ROLES = ("keeper", "launcher", "supervisor", "holder", "pool")


def keeper_of(daemon: Daemon) -> int:
    return int(Path(f"{daemon.socket}.pid").read_text())


def start(daemon: Daemon, *options: str) -> subprocess.Popen[str]:
    command = [VFSD, "upgrade", *options, str(keeper_of(daemon))]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=HANG)
    return process.returncode, out + err


def upgrade(daemon: Daemon, *options: str) -> None:
    """Upgrade, and wait until no process of the version before is left but the launched one."""
    old = {pid for pid, title in daemon.pids().items() if pid != daemon.process.pid}
    status, text = finish(start(daemon, *options))
    assert status == 0, text + log_of(daemon)
    assert keeper_of(daemon) not in old
    wait_until(lambda: not old & daemon.pids().keys(), 30, "the version before has ended")
    wait_until(lambda: has_one_of_each(daemon), 30, "there is one of each")


def has_one_of_each(daemon: Daemon) -> bool:
    """A worker has the title of the pool for a moment."""
    return [len(daemon.titled(f" {role}")) for role in ROLES] == [1] * len(ROLES)


def log_of(daemon: Daemon) -> str:
    return daemon.log.read_text(errors="replace")


@pytest.fixture(scope="module")
def daemon(handles: str, sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    held = handles if sandbox_mode.is_privileged else "never"
    with Daemon(*OPTIONS, f"--inode-file-handles={held}", mode=sandbox_mode) as running:
        yield running


@in_each_mode
def test_what_the_guest_knows_and_has_open_goes_on(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    sub = guest.mkdir(folder.nodeid, b"sub")
    file, fh = guest.create(sub.nodeid, b"file")
    gone, gone_fh = guest.create(folder.nodeid, b"gone")
    guest.write(file.nodeid, fh, 0, b"0123456789")
    guest.write(gone.nodeid, gone_fh, 0, b"data")
    guest.call(Op.UNLINK, folder.nodeid, names(b"gone"))
    for turn in range(3):
        upgrade(daemon)
        assert guest.read(file.nodeid, fh, turn, 2) == b"0123456789"[turn : turn + 2]
        assert guest.read(gone.nodeid, gone_fh, 0, 9) == b"data"
        assert guest.getattr(gone.nodeid).nlink == 0
        assert guest.lookup(sub.nodeid, b"file").nodeid == file.nodeid
        assert guest.lookup(folder.nodeid, b"sub").nodeid == sub.nodeid
        other = guest.mkdir(sub.nodeid, b"new%d" % turn)
        assert other.nodeid not in (sub.nodeid, file.nodeid, gone.nodeid)
    guest.release(gone.nodeid, gone_fh)
    expect(errno.EBADF, guest.ask(Op.READ, gone.nodeid, read_body(gone_fh), room=16))


def read_body(fh: int) -> bytes:
    return struct.pack("<QQIIQII", fh, 0, 16, 0, 0, 0, 0)


@in_each_mode
def test_locks_stay(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    file, fh = guest.create(folder.nodeid, b"locked")
    record, record_fh = guest.create(folder.nodeid, b"record")
    expect_success(lock(guest, Op.SETLK, file.nodeid, fh, 1, F_WRLCK, flock=True))
    expect_success(lock(guest, Op.SETLK, record.nodeid, record_fh, 1, F_WRLCK))
    upgrade(daemon)
    with (folder.path / "locked").open("rb") as host, pytest.raises(BlockingIOError):
        flock(host, LOCK_EX | LOCK_NB)
    expect(errno.EAGAIN, lock(guest, Op.SETLK, record.nodeid, record_fh, 2, F_WRLCK))


@in_each_mode
def test_record_locks_are_known_to_the_new_sandbox(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """When that sandbox is lost, the next one takes them again."""
    file, fh = guest.create(folder.nodeid, b"file")
    expect_success(lock(guest, Op.SETLK, file.nodeid, fh, 1, F_WRLCK))
    upgrade(daemon)
    lose_sandbox(daemon)
    with (folder.path / "file").open("r+") as host, pytest.raises(BlockingIOError):
        lockf(host, LOCK_EX | LOCK_NB)
    expect(errno.EAGAIN, lock(guest, Op.SETLK, file.nodeid, fh, 2, F_WRLCK))
    expect_success(lock(guest, Op.SETLK, file.nodeid, fh, 1, F_UNLCK))
    expect_success(lock(guest, Op.SETLK, file.nodeid, fh, 2, F_WRLCK))


def test_operators_find_one_daemon_with_their_settings(daemon: Daemon, guest: Guest) -> None:
    guest.getattr(ROOT)
    with Client(instance_of(str(keeper_of(daemon)))) as client:
        client.set_log_level("debug")
    for turn in range(2):
        upgrade(daemon)
        (found,) = [one for one in instances() if one.pid in daemon.pids()]
        assert found.pid == keeper_of(daemon)
        with Client(found) as client:
            assert client.status().settings.log_level == "debug"
            client.set_log_level("debug" if turn == 0 else "info")


def test_a_listing_goes_on_where_it_was(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    wanted = {f"name{i}".encode() for i in range(200)}
    for name in wanted:
        (folder.path / name.decode()).touch()
    fh = guest.open(folder.nodeid, os.O_RDONLY | os.O_DIRECTORY, op=Op.OPENDIR)
    found: list[Dirent] = []
    offset = 0
    while part := guest.readdir(folder.nodeid, fh, offset, 2000):
        if not found:
            upgrade(daemon)
        found += part
        offset = part[-1].off
    assert sorted(e.name for e in found) == sorted(wanted | {b".", b".."})


def test_requests_are_answered_once_while_versions_change(
    daemon: Daemon, guest: Guest, folder: Folder
) -> None:
    """Each directory can be made only once, and the request is in flight when its worker ends."""
    made = 0
    for _ in range(3):
        process = start(daemon)
        while process.poll() is None:
            pending = []
            for queue in range(1, QUEUES + 1):
                body = struct.pack("<II", 0o755, 0) + names(b"once%d" % made)
                pending.append(guest.submit(Op.MKDIR, folder.nodeid, body, queue=queue))
                made += 1
            for one in pending:
                expect_success(guest.finish(one))
        assert finish(process)[0] == 0, log_of(daemon)
    assert len(list(folder.path.iterdir())) == made


def test_a_vmm_is_served_that_comes_after_an_upgrade() -> None:
    with Daemon(*OPTIONS) as daemon:
        daemon.await_pool()
        upgrade(daemon)
        frontend = Frontend(daemon.socket).setup(QUEUES)
        guest = Guest(frontend)
        guest.init()
        made = guest.mkdir(ROOT, b"made")
        upgrade(daemon)
        assert guest.lookup(ROOT, b"made").nodeid == made.nodeid
        frontend.restart_ring(1)
        assert guest.lookup(ROOT, b"made").nodeid == made.nodeid
        frontend.close()
        frontend = Frontend(daemon.socket).setup(QUEUES)
        guest = Guest(frontend)
        guest.init()
        guest.lookup(ROOT, b"made")
        frontend.close()


def test_the_launched_process_stays_and_passes_signals_on() -> None:
    daemon = Daemon(*OPTIONS)
    try:
        daemon.await_pool()
        upgrade(daemon)
        upgrade(daemon)
        assert len(daemon.titled("first version")) == 1
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(HANG) == 0
        assert not Path(daemon.socket).exists()
    finally:
        daemon.close()


def test_a_dry_run_changes_nothing(daemon: Daemon, guest: Guest, folder: Folder) -> None:
    file, fh = guest.create(folder.nodeid, b"file")
    assert_one_version(daemon)
    before, keeper = set(daemon.titled("worker")), keeper_of(daemon)
    status, text = finish(start(daemon, "--dry-run"))
    assert status == 0, text
    assert "would take the place" in text
    wait_until(lambda: len(daemon.titled(" launcher")) == 1, 30, "the trial has ended")
    assert (set(daemon.titled("worker")), keeper_of(daemon)) == (before, keeper)
    assert guest.write(file.nodeid, fh, 0, b"x") == 1


# Failures.


@pytest.fixture
def broken() -> Iterator[tuple[Daemon, Guest, Callable[[str], None]]]:
    """A daemon with a guest, and a function that replaces the program."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "virtiofsd")
        real = Path(sys.executable).parent / "virtiofsd"
        program.write_text(real.read_text())

        def install(text: str) -> None:
            program.write_text(text)

        with Daemon(*OPTIONS, program=(sys.executable, str(program))) as daemon:
            frontend = Frontend(daemon.socket).setup(QUEUES)
            guest = Guest(frontend)
            guest.init()
            yield daemon, guest, install
            frontend.close()


@pytest.mark.parametrize(
    ("program", "options", "why"),
    [
        ("import a_module_that_is_not_there", (), "ended before it was ready"),
        ("this cannot be run", (), "ended before it was ready"),
        ("import os; os.kill(os.getpid(), 9)", (), "ended before it was ready"),
        ("import time; time.sleep(1000)", ("--timeout=1",), "not ready in time"),
    ],
)
def test_a_broken_installation_changes_nothing(
    broken: tuple[Daemon, Guest, Callable[[str], None]],
    program: str,
    options: tuple[str, ...],
    why: str,
) -> None:
    daemon, guest, install = broken
    made = guest.mkdir(ROOT, b"made")
    assert_one_version(daemon)
    before = set(daemon.titled("worker"))
    install(program)
    status, text = finish(start(daemon, *options))
    assert status == 1
    assert why in text
    assert set(daemon.titled("worker")) == before
    assert guest.lookup(ROOT, b"made").nodeid == made.nodeid
    wait_until(lambda: len(daemon.processes()) == len(daemon.pids()), 30, "nothing is left")


class NewVersion:
    """The processes of the new version while an upgrade is under way."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.old = set(daemon.pids())

    def find(self, role: str) -> list[int]:
        return [pid for pid in self.daemon.titled(f" {role}") if pid not in self.old]

    def await_first(self, role: str, process: subprocess.Popen[str]) -> list[int]:
        """Wait for the first process of this role; empty if the upgrade has ended."""
        wait_until(lambda: bool(self.find(role)) or process.poll() is not None, 30, f"a new {role}")
        return self.find(role)


@pytest.mark.parametrize("role", ROLES)
def test_the_death_of_a_process_leaves_one_version(role: str) -> None:
    """Each process of the new version is killed as soon as it is there."""
    with Daemon(*OPTIONS) as daemon:
        frontend = Frontend(daemon.socket).setup(QUEUES)
        guest = Guest(frontend)
        guest.init()
        file, fh = guest.create(ROOT, b"file")
        guest.write(file.nodeid, fh, 0, b"data")
        if role != "holder":  # with a holder, the files without a name are lost
            guest.call(Op.UNLINK, ROOT, names(b"file"))
        for _ in range(2):
            new = NewVersion(daemon)
            process = start(daemon, "--timeout=20")
            for pid in new.await_first(role, process):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            finish(process)
            assert_one_version(daemon)
            assert guest.read(file.nodeid, fh, 0, 9) == b"data"
        frontend.close()


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.4, 0.6])
def test_the_death_of_the_old_supervisor_leaves_one_version(seconds: float) -> None:
    with Daemon(*OPTIONS) as daemon:
        frontend = Frontend(daemon.socket).setup(QUEUES)
        guest = Guest(frontend)
        guest.init()
        file, fh = guest.create(ROOT, b"file")
        guest.write(file.nodeid, fh, 0, b"data")
        supervisor = daemon.the(" supervisor")
        process = start(daemon)
        time.sleep(seconds)  # any moment will do
        with suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGKILL)
        finish(process)
        assert_one_version(daemon)
        assert guest.read(file.nodeid, fh, 0, 9) == b"data"
        upgrade(daemon)
        frontend.close()


def assert_one_version(daemon: Daemon) -> None:
    def is_one() -> bool:
        return has_one_of_each(daemon) and len(daemon.titled(" worker")) == QUEUES

    with suppress(psutil.NoSuchProcess):
        wait_until(is_one, 30, "one version serves")
