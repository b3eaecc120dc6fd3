# SPDX-License-Identifier: Apache-2.0
"""What a living worker that was taken over cannot ask of the kernel, by the daemon's options.

tests/worker/test_seccomp.py tries the whole table on processes with the same confinement; here the
processes of a daemon are shown to have that confinement.
"""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.sandbox_modes import NAMESPACE, SandboxMode, in_each_mode, in_every_mode

from .daemon import OURS, Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Guest
from .injector import AT_FDCWD, Injector, Killed

WORKERS = 16
SECONDS = 20.0
FORK = int(signal.SIGCHLD)
SCHED_FIFO, PR_SET_DUMPABLE, RLIMIT_NOFILE = 1, 4, 7
F_SETOWN, F_SETSIG, F_SETLEASE, F_NOTIFY = 8, 10, 1024, 1026

Attempt = tuple[Any, ...]
ALWAYS: dict[str, Attempt] = {
    "a signal to the pool": ("kill", 1, 0),
    "a signal to a thread of the pool": ("tgkill", 1, 1, 0),
    "a process": ("clone", FORK, 0, 0, 0, 0),
    "another's limits": ("prlimit64", 1, RLIMIT_NOFILE, 0, 0),
    "its own limits": ("prlimit64", 0, RLIMIT_NOFILE, b"\0" * 16, 0),
    "fcntl: signals": ("fcntl", 0, F_SETOWN, 1),
    "fcntl: which signals": ("fcntl", 0, F_SETSIG, 9),
    "fcntl: a lease": ("fcntl", 0, F_SETLEASE, 0),
    "fcntl: changes of a directory": ("fcntl", 0, F_NOTIFY, 0),
    "fds by a channel": ("sendmsg", 0, b"\0" * 56, 0),
    "a program": ("execve", "/bin/true", 0, 0),
    "a debugger": ("ptrace", 16, 1, 0, 0),
    "a socket": ("socket", 1, 1, 0),
    "prctl": ("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0),
    "executable memory": ("mmap", 0, 4096, 4, 0x22, -1, 0),
}
WITHOUT_OPTIONS: dict[str, Attempt] = {
    "AIO": ("io_setup", 8, bytearray(8)),
    "xattrs": ("setxattr", "/", "user.x", b"1", 1, 0),
    "flock": ("flock", 0, 1),
    "record locks": ("fcntl", 0, 37, b"\0" * 32),
    "a CPU": ("sched_setaffinity", 0, 8, b"\1" + b"\0" * 7),
    "handles": ("open_by_handle_at", 0, b"\0" * 16, 0),
}
READ_ONLY: dict[str, Attempt] = {
    "mkdir": ("mkdirat", AT_FDCWD, "/new", 0o755),
    "create": ("openat", AT_FDCWD, "/new", os.O_WRONLY | os.O_CREAT, 0o644),
    "write": ("openat", AT_FDCWD, "/old", os.O_WRONLY, 0),
    "unlink": ("unlinkat", AT_FDCWD, "/old", 0),
    "rename": ("renameat2", AT_FDCWD, "/old", AT_FDCWD, "/new", 0),
    "mode": ("fchmodat", AT_FDCWD, "/old", 0o777),
    "owner": ("fchownat", AT_FDCWD, "/old", 1, 1, 0),
    "size": ("truncate", "/old", 0),
    "node": ("mknodat", AT_FDCWD, "/new", 0o600, 0),
    "link": ("linkat", AT_FDCWD, "/old", AT_FDCWD, "/new", 0),
    "chattr": ("ioctl", 0, 0x40086602, b"\0" * 8),
}


@in_every_mode
def test_it_dies_of_trying(sandbox_mode: SandboxMode) -> None:
    check_outcomes(ALWAYS, "-o", "xattr,flock,posix_lock", mode=sandbox_mode)


@pytest.mark.parametrize(
    ("option", "attempts"),
    [("--inode-file-handles=never", WITHOUT_OPTIONS), ("--readonly", READ_ONLY)],
    ids=["without-options", "read-only"],
)
def test_it_dies_of_trying_what_an_option_decides(
    option: str, attempts: dict[str, Attempt]
) -> None:
    check_outcomes(attempts, option)


def check_outcomes(
    attempts: dict[str, Attempt], *options: str, mode: SandboxMode = NAMESPACE
) -> None:
    """Check that each attempt kills the worker that makes it, and changes nothing in the share."""
    with Daemon(f"--request-queues={WORKERS}", *options, mode=mode) as daemon:
        (daemon.share / "old").write_bytes(b"kept")
        frontend = Frontend(daemon.socket).setup(WORKERS)
        Guest(frontend).init()
        wait_until(lambda: len(daemon.titled("worker")) == WORKERS, SECONDS, "all workers")
        outcomes = {}
        for pid, (name, attempt) in zip(daemon.titled("worker"), attempts.items(), strict=False):
            outcomes[name] = attempted(pid, attempt)
        assert outcomes == dict.fromkeys(attempts, "SIGSYS")
        assert {path.name: path.read_bytes() for path in daemon.share.iterdir()} == {"old": b"kept"}
        frontend.close()


def attempted(pid: int, attempt: Attempt) -> str:
    try:
        with Injector(pid) as worker:
            return str(worker.call(*attempt))
    except Killed as killed:
        return killed.signal.name


def test_it_cannot_change_its_scheduling_policy() -> None:
    """The call is answered, since zmq makes it, and not made."""
    with Daemon() as daemon, Frontend(daemon.socket) as frontend:
        Guest(frontend.setup(1)).init()
        (worker,) = daemon.titled("worker")
        policy = os.sched_getscheduler(worker)
        assert policy != SCHED_FIFO
        assert attempted(worker, ("sched_setscheduler", 0, SCHED_FIFO, b"\1\0\0\0")) == "0"
        assert os.sched_getscheduler(worker) == policy


@pytest.mark.parametrize("policy", ["--batch 0", "--fifo 1", "--reset-on-fork --rr 1"])
def test_a_daemon_may_have_any_scheduling_policy(policy: str) -> None:
    """As a service with CPUSchedulingPolicy= has one."""
    program = [require("chrt"), *policy.split(), *OURS]
    with Daemon(program=program) as daemon, Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(2))
        guest.init()
        for queue in (1, 2):
            guest.lookup(ROOT, b".", queue=queue)


@in_each_mode
def test_each_worker_has_one_filter_more_than_the_pool(sandbox_mode: SandboxMode) -> None:
    with Daemon(mode=sandbox_mode) as daemon:
        frontend = Frontend(daemon.socket).setup(2)
        pool = daemon.the("pool")
        wait_until(lambda: len(daemon.titled("worker")) == 2, SECONDS, "the workers")
        for pid in daemon.titled("worker"):
            for task in Path(f"/proc/{pid}/task").iterdir():
                assert filters(task) == filters(Path(f"/proc/{pool}")) + 1
        frontend.close()


def filters(process: Path) -> int:
    status = (process / "status").read_text()
    return int(status.partition("Seccomp_filters:")[2].split()[0])
