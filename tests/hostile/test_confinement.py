# SPDX-License-Identifier: Apache-2.0
"""The keeper or the supervisor was taken over: an attacker in them reaches nothing of the host.

The processes of a running daemon make the system calls, so that everything that confines them is in
force.
"""

import ast
import errno
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.conftest import require
from tests.sandbox_modes import USER, SandboxMode, in_each_mode, in_every_mode
from tests.waiting import HANG
from tests.worker.sandboxed import syscall
from vfsd.supervisor import confinement
from vfsd.supervisor.confinement import (
    CALLS,
    OWN_IDS,
    Call,
    confine,
    own_id,
)
from vfsd.supervisor.options import Options

from .daemon import OURS, Daemon, wait_until
from .driver import GET_FEATURES, Frontend
from .fuse import ROOT, Guest
from .injector import AT_FDCWD, Injector, Killed

NOBODY: Final = 65534
ROLES: Final = ("keeper", "supervisor")
PACKAGE: Final = Path(confinement.__file__).parents[1]
CLONE_NEWUSER, CLONE_FILES, CLONE_VM = 0x10000000, 0x400, 0x100
DENIED: Final = errno.EACCES
KILLED: Final = "killed"

# System calls to attempt in the keeper and the supervisor of root's daemon, with the result of each
# call.
ATTEMPTS: Final[dict[str, tuple[Any, ...]]] = {
    "read a file of root": (DENIED, "openat", AT_FDCWD, "/etc/shadow", os.O_RDONLY),
    "read a world-readable file": (DENIED, "openat", AT_FDCWD, "/etc/hostname", os.O_RDONLY),
    "list a folder": (DENIED, "openat", AT_FDCWD, "/etc", os.O_RDONLY | os.O_DIRECTORY),
    "read by the root of pid 1": (DENIED, "openat", AT_FDCWD, "/proc/1/root/etc/shadow", 0),
    "read by its own root": (DENIED, "openat", AT_FDCWD, "/proc/self/root/etc/hostname", 0),
    "read another's memory": (DENIED, "openat", AT_FDCWD, "/proc/1/mem", os.O_RDONLY),
    "write": (KILLED, "openat", AT_FDCWD, "/etc/shadow", os.O_WRONLY),
    "write to a kernel setting": (
        KILLED, "openat", AT_FDCWD, "/proc/sys/kernel/core_pattern", os.O_WRONLY,
    ),
    "make a file": (KILLED, "openat", AT_FDCWD, "new", os.O_RDONLY | os.O_CREAT, 0o600),
    "empty a file": (KILLED, "openat", AT_FDCWD, "/etc/hostname", os.O_RDONLY | os.O_TRUNC),
    "remove a file": (DENIED, "unlink", "/etc/hostname"),
    "rename a file": (KILLED, "rename", "/etc/hostname", "/etc/other"),
    "change a mode": (KILLED, "chmod", "/etc/hostname", 0o666),
    "change an owner": (KILLED, "fchownat", AT_FDCWD, "/etc/hostname", 0, 0, 0),
    "make a device": (KILLED, "mknodat", AT_FDCWD, "device", 0o60600, 0x700),
    "open a handle": (KILLED, "open_by_handle_at", AT_FDCWD, bytes(128), 0),
    "execute": (KILLED, "execve", "/bin/true", None, None),
    "execute by fd": (KILLED, "execveat", AT_FDCWD, "/bin/true", None, None, 0),
    "mount": (KILLED, "mount", "none", "/mnt", "tmpfs", 0, None),
    "open a tree of mounts": (KILLED, "open_tree", AT_FDCWD, "/", 1),
    "unshare": (KILLED, "unshare", CLONE_NEWUSER),
    "enter a namespace": (KILLED, "setns", 0, 0),
    "change the root": (KILLED, "chroot", "/"),
    "trace": (KILLED, "ptrace", 16, 1, 0, 0),
    "read another's memory at once": (KILLED, "process_vm_readv", 1, None, 0, None, 0, 0),
    "take another's fd": (KILLED, "pidfd_getfd", 0, 0, 0),
    "a TCP socket": (KILLED, "socket", socket.AF_INET, socket.SOCK_STREAM, 0),
    "a packet socket": (KILLED, "socket", socket.AF_PACKET, socket.SOCK_RAW, 0),
    "netlink": (KILLED, "socket", socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "become root": (KILLED, "setresuid", 0, 0, 0),
    "files as root": (KILLED, "setfsuid", 0),
    "take capabilities": (KILLED, "capset", bytes(8), bytes(24)),
    "a process with this memory": (KILLED, "clone", CLONE_VM | signal.SIGCHLD, 0, 0, 0, 0),
    "a process in a namespace": (KILLED, "clone", CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0),
    "fork": (KILLED, "fork"),
    "executable memory": (KILLED, "mmap", 0, 4096, 7, 0x22, -1, 0),
    "executable memory later": (KILLED, "mprotect", 0, 4096, 5),
    "load a program into the kernel": (KILLED, "bpf", 0, None, 0),
    "a limit of another": (KILLED, "prlimit64", 1, 7, None, None),
    "dumpable": (KILLED, "prctl", 4, 1, 0, 0, 0),
    "keys": (KILLED, "keyctl", 0, 0, 0, 0, 0),
    "io_uring": (KILLED, "io_uring_setup", 1, bytes(120)),
    "another filter": (KILLED, "seccomp", 0, 0, None),
}  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that no other user can reach."""
    with tempfile.TemporaryDirectory(prefix="vfsd-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def daemon(sandbox_mode: SandboxMode) -> Iterator[Daemon]:
    require("root")
    with Daemon(mode=sandbox_mode) as running:
        running.await_pool()
        yield running


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@in_every_mode
@pytest.mark.parametrize("role", ROLES)
def test_it_has_given_up_everything(role: str, sandbox_mode: SandboxMode) -> None:
    uid = sandbox_mode.uid
    with Daemon(mode=sandbox_mode) as daemon:
        daemon.await_pool()
        pid = daemon.the(role)
        status = status_of(pid)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        sets = ["CapInh", "CapPrm", "CapEff", "CapAmb", *(["CapBnd"] if uid is None else [])]
        assert {name: int(status[name], 16) for name in sets} == dict.fromkeys(sets, 0)
        if uid is None:
            own = status["Uid"].split()[1]
            assert int(own) in OWN_IDS
            assert status["Uid"].split() == status["Gid"].split() == [own] * 4
        assert status["Groups"].split() in ([], [str(uid)])
        assert "Max core file size        0                    0" in _limits(pid)


def _limits(pid: int) -> str:
    return Path(f"/proc/{pid}/limits").read_text()


def test_only_the_launcher_keeps_its_privileges(daemon: Daemon) -> None:
    launcher = daemon.the("launcher")
    assert status_of(launcher)["CapEff"] == status_of(os.getpid())["CapEff"]
    fds = {str(path.readlink()) for path in Path(f"/proc/{launcher}/fd").iterdir()}
    others = {str(daemon.share), "/dev/null", str(daemon.log), f"{daemon.socket}.pid"}
    of_template = {
        "/memfd:vfsd-loader (deleted)",
        "/memfd:vfsd-job (deleted)",
        "anon_inode:[pidfd]",
        "anon_inode:[eventfd]",
    }
    sockets = fds - others - of_template
    assert len(sockets) == 2, sockets  # to the supervisor and to the template
    assert all(link.startswith("socket:") for link in sockets)


@pytest.mark.parametrize("role", ROLES)
def test_it_has_no_fd_of_the_share(daemon: Daemon, role: str) -> None:
    pid = daemon.the(role)
    fds = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    assert not any(fd.startswith(str(daemon.share)) for fd in fds)


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=list(ATTEMPTS))
def test_an_attempt_fails(folder: Path, attempt: tuple[Any, ...]) -> None:
    """The attempt is made in a process that is confined as keeper and supervisor are, and that does
    nothing else."""
    require("root")
    outcome, call, *arguments = attempt
    child = os.fork()
    if child == 0:
        try:
            own = own_id(str(folder), b"test")
            confine(str(folder), own, Options(seccomp="kill"), lambda _level, _text: None)
            syscall(call, *(a.encode() if isinstance(a, str) else a for a in arguments))
        except OSError as error:
            os._exit(error.errno or 255)
        finally:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGSYS if outcome == KILLED else outcome)


@in_each_mode
@pytest.mark.parametrize("role", ROLES)
def test_an_attempt_is_denied_in_a_running_daemon(daemon: Daemon, role: str) -> None:
    pid = daemon.the(role)
    with Injector(pid) as process:
        for what, (outcome, call, *arguments) in ATTEMPTS.items():
            if outcome != KILLED:
                assert process.call(call, *arguments) == -outcome, what


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("what", ["write", "execute", "a TCP socket", "mount"])
def test_an_attempt_kills_in_a_running_daemon(role: str, what: str) -> None:
    require("root")
    with Daemon() as daemon:
        daemon.await_pool()
        pid = daemon.the(role)
        _, call, *arguments = ATTEMPTS[what]
        family = daemon.processes()
        with pytest.raises(Killed, match="SIGSYS"), Injector(pid) as process:
            process.call(call, *arguments)
        if role == "keeper":  # a supervisor without its keeper waits for no VMM
            daemon.process.wait(HANG)
            assert not psutil.wait_procs(family, 10)[1]


def test_a_killed_supervisor_is_replaced_and_its_guest_served() -> None:
    require("root")
    with Daemon() as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        pid = daemon.the("supervisor")
        with pytest.raises(Killed), Injector(pid) as process:
            process.call("execve", "/bin/sh", None, None)
        wait_until(
            lambda: daemon.titled("supervisor") not in ([pid], []), 10, "the next supervisor"
        )
        guest.getattr(ROOT)
        assert frontend.ask(GET_FEATURES).u64


@pytest.mark.parametrize("options", [(), ("--userns",), ("--uid-map=:0:100000:65536:",)], ids=str)
def test_signals_reach_the_sandbox_and_nobody_else(options: tuple[str, ...]) -> None:
    require("root")
    with Daemon(*options) as daemon, subprocess.Popen(["sleep", "1000"]) as of_root:
        daemon.await_pool()
        sandbox = [pid for what in ("pool", " handles") for pid in daemon.titled(what)]
        launcher = daemon.the("launcher")
        for role in ROLES:
            with Injector(daemon.the(role)) as process:

                def signal_to(pid: int, process: Injector = process) -> int:
                    pidfd = process.call("pidfd_open", pid, 0)
                    result = process.call("pidfd_send_signal", pidfd, 0, None, 0)
                    process.call("close", pidfd)
                    return result

                assert [signal_to(pid) for pid in sandbox] == [0] * len(sandbox)
                for pid in (1, of_root.pid, launcher, os.getpid()):
                    assert signal_to(pid) == -errno.EPERM
        of_root.kill()


def test_who_is_written_to_does_not_see_root(daemon: Daemon) -> None:
    """syslog and systemd trust the user id that a sender gives. The kernel lets a sender give any
    of its own ids: the real, the effective and the saved user id."""
    pid = daemon.the("supervisor")
    path = daemon.folder / "log-socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(path))
        path.chmod(0o777)
        log.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        address = struct.pack("=H108s", socket.AF_UNIX, bytes(path))
        with Injector(pid) as process:
            fd = process.call("socket", socket.AF_UNIX, socket.SOCK_DGRAM, 0)
            assert process.call("connect", fd, address, len(address)) == 0
            for uid in (None, 0):
                sent = process.call("sendmsg", fd, _message(process, pid, uid), 0)
                assert sent == (1 if uid is None else -errno.EPERM)
            assert process.call("close", fd) == 0
        _, ancillary, *_ = log.recvmsg(1, socket.CMSG_SPACE(12))
    assert all(number in OWN_IDS for number in struct.unpack("=iII", ancillary[0][2])[1:])


def _message(process: Injector, pid: int, uid: int | None) -> int:
    """The address of a struct msghdr with one byte, and with the sender's ids if `uid` is given."""
    gid = int(status_of(pid)["Gid"].split()[0])
    head = struct.pack("=Qii", 28, socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    control = b"" if uid is None else head + struct.pack("=iIII", pid, uid, gid, 0)
    iovec = struct.pack("=QQ", process.address(b"x"), 1)
    at = process.address(iovec, 64), process.address(control, 128)
    return process.address(
        struct.pack("=QIIQQQQiI", 0, 0, 0, at[0], 1, at[1], len(control), 0, 0), 256
    )


@pytest.mark.parametrize("role", ROLES)
def test_who_is_connected_to_does_not_see_root(daemon: Daemon, role: str) -> None:
    """D-Bus and systemd do what root asks for, and judge a peer by its effective user id."""
    pid = daemon.the(role)
    path = daemon.folder / f"bus-{role}"
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(path))
        path.chmod(0o777)
        bus.listen()
        address = struct.pack("=H108s", socket.AF_UNIX, bytes(path))
        with Injector(pid) as process:
            fd = process.call("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0)
            assert process.call("connect", fd, address, len(address)) == 0
            peer, _ = bus.accept()
            with peer:
                cred = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            assert process.call("close", fd) == 0
        assert all(number in OWN_IDS for number in struct.unpack("=iII", cred)[1:])


def test_it_connects_to_no_abstract_socket(daemon: Daemon) -> None:
    pid = daemon.the("supervisor")
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(f"\0vfsd-test-{os.getpid()}")
        bus.listen()
        name = bus.getsockname()
        address = struct.pack("=H", socket.AF_UNIX) + name
        with Injector(pid) as process:
            fd = process.call("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0)
            assert process.call("connect", fd, address, len(address)) == -errno.EPERM
            process.call("close", fd)


@pytest.mark.parametrize("uid", [NOBODY, USER])
def test_other_users_reach_neither_process_nor_folder(daemon: Daemon, uid: int) -> None:
    """Other daemons also run as nobody: they must not be able to give orders to workers."""
    pids = [pid for role in ROLES for pid in daemon.titled(role)]
    folder = Path(f"/proc/{pids[0]}/cwd").readlink()
    assert folder.stat().st_uid in OWN_IDS
    worker = next(folder.iterdir())
    attempts: tuple[Callable[[], object], ...] = (
        *(partial(os.kill, pid, 0) for pid in pids),
        partial(os.listdir, folder),
        partial(os.rename, folder, f"{folder}.moved"),
        partial(_connect, str(worker)),
    )
    child = os.fork()
    if child == 0:
        refused = 0
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            for attempt in attempts:
                try:
                    attempt()
                except PermissionError:
                    refused += 1
        finally:
            os._exit(len(attempts) - refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(path)


def test_two_daemons_are_two_users(daemon: Daemon) -> None:
    with Daemon() as other:
        other.await_pool()
        owners = {Path(f"/proc/{d.the('keeper')}/cwd").stat().st_uid for d in (daemon, other)}
        assert len(owners) == 2


def test_what_was_put_in_the_place_of_the_folder_is_not_removed(tmp_path: Path) -> None:
    """The launcher, which is root, removes the folder of the sockets."""
    (tmp_path / "precious").write_text("content")
    with Daemon() as daemon:
        daemon.await_pool()
        folder = Path(f"/proc/{daemon.the('keeper')}/cwd").readlink()
        folder.rename(f"{folder}.moved")
        folder.symlink_to(tmp_path)
    try:
        assert (tmp_path / "precious").read_text() == "content"
    finally:
        folder.unlink()
        shutil.rmtree(f"{folder}.moved")


def test_the_folder_of_the_workers_sockets_may_be_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's path may be longer than a socket's may be, and may lead through folders that
    only root may enter."""
    folder = tmp_path / "closed" / ("x" * 100)
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    monkeypatch.setenv("TMPDIR", str(folder))
    with Daemon("--keep-listening") as daemon:
        monkeypatch.undo()
        for _ in range(2):
            with Frontend(daemon.socket) as frontend:
                guest = Guest(frontend.setup(2))
                guest.init()
                guest.getattr(ROOT)
        assert len(list(folder.iterdir())) == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("capability", ["chown", "setuid", "setgid"])
def test_root_that_may_not_change_ids_or_owners_stays_root_and_says_so(capability: str) -> None:
    require("root")
    without = ("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}")
    with Daemon(program=(*without, *OURS)) as daemon:
        daemon.await_pool()
        assert "keeper and supervisor stay root, without capabilities" in daemon.log.read_text()
        for role in ROLES:
            status = status_of(daemon.the(role))
            assert (status["Uid"].split(), int(status["CapPrm"], 16)) == (["0"] * 4, 0)


def test_without_a_filter_the_rest_is_given_up() -> None:
    with Daemon("--seccomp=none") as daemon:
        daemon.await_pool()
        for role in ROLES:
            pid = daemon.the(role)
            status = status_of(pid)
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "0")
            assert int(status["CapPrm"], 16) == 0


HIDING: Final = (
    "unshare", "--mount", "--propagation=slave", "sh", "-c",
    'mount -t proc -o hidepid=invisible proc /proc && exec "$0" "$@"',
)  # fmt: skip


def test_processes_of_the_sandbox_are_seen_where_proc_hides_them() -> None:
    """As in a service with ProtectProc=invisible: a process of nobody looks for processes of
    root."""
    require("root")
    with Daemon(program=(*HIDING, *OURS)) as daemon:
        daemon.await_pool()
        pool = daemon.the("pool")
        for role in ROLES:
            with Injector(daemon.the(role)) as process:
                path = f"/proc/{pool}/stat"
                assert process.call("openat", AT_FDCWD, path, os.O_RDONLY) >= 0


# The table of allowed calls.


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.name}")
def test_each_row_names_a_caller(call: Call) -> None:
    """`caller` is a word that a file of the project contains, or a function of a library."""
    for reason in call.caller.split("; "):
        where, _, what = reason.partition(": ")
        assert what, reason
        if where in ("CPython", "glibc", "libzmq", "Linux"):
            continue
        (path,) = [
            path for part in ("supervisor", "transport", "transport/csrc")
            if (path := PACKAGE / part / where).exists()
        ]  # fmt: skip
        assert re.search(rf"\b{re.escape(what.partition(',')[0])}\b", path.read_text()), reason


def test_nothing_is_imported_after_the_start() -> None:
    """An import inside a function belongs to the start, when files can still be read."""
    late = {
        path.name: names
        for path in PACKAGE.glob("supervisor/*.py")
        if (names := _imported_late(path))
    }
    assert late == {
        "cli.py": {"json", "shutil"},
        "config_file.py": {"tomllib"},
        "listener.py": {"grp"},
        "settings.py": {"difflib"},
    }


def _imported_late(path: Path) -> set[str]:
    functions = (
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
    )
    return {
        alias.name
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
