# SPDX-License-Identifier: Apache-2.0
"""What a worker that was taken over reaches, in every sandbox mode: real calls in a real worker.

The share is a file system of its own, so whatever is reached beside it was reached by a hole. Each
attempt returns the name of an errno, "ok", or the signal that ended the worker. Where the table has
"ok", SECURITY.md and the man page say that the mode does not stop the attempt.
"""

import ctypes
import errno
import mmap
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import require
from tests.sandbox_modes import SANDBOX_MODES

from .daemon import Daemon
from .driver import Frontend
from .fuse import Guest
from .injector import AT_FDCWD, Injector, Killed, error_name

NOBODY: Final = 65534
UNCHANGED: Final = -1
MAP_LOCKED: Final = 0x2000
DEVICE: Final = os.makedev(1, 5)  # /dev/zero: opening it does no harm
TARGET: Final = "etc/hostname"
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

MODES: Final = {
    "namespace": (),
    "userns": (),
    "chroot": (),
    "none": ("--inode-file-handles=never",),
    "none, handles": ("--inode-file-handles=prefer",),
    "namespace, signed": ("--inode-file-handles=signed",),
    "unprivileged": (),
    "unprivileged, none": ("--inode-file-handles=never",),
}


@dataclass
class Scene:
    """A daemon, a file of the host, and two processes that the worker should not reach."""

    daemon: Daemon
    victim: Path
    handle: bytes  # the handle of TARGET, for open_by_handle_at
    of_root: int  # the pid of a process of root
    # The pid of a process of the user that has started the daemon; of nobody if root has.
    of_user: int


@pytest.fixture(scope="module", params=MODES, ids=lambda name: f"sandbox={name}")
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def scene(mode: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    require("root")
    started = SANDBOX_MODES.get(mode) or SANDBOX_MODES[mode.partition(",")[0]]
    share = tmp_path_factory.mktemp("taken-over") / "share"
    share.mkdir()
    with ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", "share", share], check=True)
        stack.callback(lambda: subprocess.run(["umount", "-l", share], check=True))
        pids = [stack.enter_context(sleeping(uid)) for uid in (0, started.uid or NOBODY)]
        daemon = stack.enter_context(
            Daemon("--keep-listening", *MODES[mode], share=share, mode=started)
        )
        victim = daemon.folder / "victim"
        yield Scene(daemon, victim, handle_of(f"/{TARGET}"), *(p.pid for p in pids))


class sleeping(subprocess.Popen[bytes]):  # noqa: N801 - it is used as a function
    """A process of the host that `uid` may trace."""

    def __init__(self, uid: int) -> None:
        super().__init__(["sleep", "1000"], user=uid, group=uid, extra_groups=[])

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()


def handle_of(path: str) -> bytes:
    """struct file_handle of a file on the host."""
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
    done = _LIBC.name_to_handle_at(AT_FDCWD, path.encode(), handle, ctypes.byref(ctypes.c_int()), 0)
    assert done == 0, errno.errorcode[ctypes.get_errno()]
    return handle.raw


Attempt = Callable[[Injector, Scene], str]


def first_success(results: Iterator[int]) -> str:
    """ "ok" if one of the results is a success; otherwise the error of the last call."""
    name = "nothing was tried"
    for result in results:
        name = error_name(result)
        if result >= 0:
            break
    return name


def open_above_each_fd(worker: Injector, _scene: Scene) -> str:
    def attempts() -> Iterator[int]:
        for fd in sorted(worker.fds()):
            for depth in range(1, 9):
                yield worker.call("openat", fd, "../" * depth + TARGET, os.O_RDONLY)

    opened = first_success(attempts())
    return "denied" if opened in ("ENOENT", "ENOTDIR", "EACCES") else opened


def open_by_handle_with_each_fd(worker: Injector, scene: Scene) -> str:
    def attempts() -> Iterator[int]:
        for fd in sorted(worker.fds()):
            yield worker.call("open_by_handle_at", fd, scene.handle, os.O_RDONLY)

    opened = first_success(attempts())
    return "denied" if opened in ("ESTALE", "EBADF", "EPERM") else opened


def open_by_handle_with_each_link(worker: Injector, _scene: Scene) -> str:
    """These links of /proc lead to files whatever the root directory is: above all the link to the
    program, which is on a file system of the host."""
    handle = handle_of(os.path.realpath(sys.executable))
    mapped = Path(f"/proc/{worker.pid}/maps").read_text().split(" ", 1)[0]
    links = ("exe", "cwd", "root", "task/../exe", f"map_files/{mapped}", "ns/mnt", "ns/pid")

    def attempts() -> Iterator[int]:
        folder = proc_fd(worker)
        for link in links:
            fd = worker.call("openat", folder, f"../{link}", os.O_RDONLY)
            if fd >= 0:
                yield worker.call("open_by_handle_at", fd, handle, os.O_RDONLY)

    opened = first_success(attempts())
    return "denied" if opened in ("ESTALE", "EBADF", "EPERM", "EOPNOTSUPP") else opened


def path_call(name: str, *rest: int) -> Attempt:
    """A call on the path of the victim."""

    def attempt(worker: Injector, scene: Scene) -> str:
        return error_name(worker.call(name, AT_FDCWD, str(scene.victim), *rest))

    return attempt


def rename_victim(worker: Injector, scene: Scene) -> str:
    target = str(scene.victim) + "-stolen"
    return error_name(worker.call("renameat", AT_FDCWD, str(scene.victim), AT_FDCWD, target))


def make_directory_outside(worker: Injector, scene: Scene) -> str:
    path = scene.victim.with_name("new")
    result = worker.call("mkdirat", AT_FDCWD, str(path), 0o700)
    if path.exists():
        path.rmdir()
    return error_name(result)


def proc_fd(worker: Injector) -> int:
    """The worker's fd of /proc/PID/fd; two levels above it is the root of that /proc."""
    return next(fd for fd, what in worker.fds().items() if what.endswith("/fd"))


def root_of_a_user_process(worker: Injector, scene: Scene) -> str:
    """A process of the user that the worker is, or can become, has the host's root directory."""
    is_root = scene.daemon.mode.uid is None
    assert not is_root or worker.call("setresuid", UNCHANGED, NOBODY, UNCHANGED) == 0
    path = f"../../{scene.of_user}/root/{TARGET}"
    opened = worker.call("openat", proc_fd(worker), path, os.O_RDONLY)
    assert not is_root or worker.call("setresuid", UNCHANGED, 0, UNCHANGED) == 0
    return error_name(opened)


def command_line_of_others(worker: Injector, scene: Scene) -> str:
    path = f"../../{scene.of_root}/cmdline"
    return error_name(worker.call("openat", proc_fd(worker), path, os.O_RDONLY))


def signal_a_process(worker: Injector, scene: Scene) -> str:
    """Signal a process to which the worker's user may send signals."""
    pid = scene.of_root if scene.daemon.mode.uid is None else scene.of_user
    return error_name(worker.call("kill", pid, 0))


def lock_memory(worker: Injector, _scene: Scene) -> str:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_LOCKED
    return error_name(worker.call("mmap", 0, 4096, mmap.PROT_READ, flags, -1, 0))


def open_a_device_made_by_mknod(worker: Injector, _scene: Scene) -> str:
    root = next(fd for fd, what in worker.fds().items() if is_root(worker.pid, fd, what))
    made = worker.call("mknodat", root, "device", stat.S_IFCHR | 0o600, DEVICE)
    opened = worker.call("openat", root, "device", os.O_RDWR)
    worker.call("unlinkat", root, "device", 0)
    return error_name(opened) if made == 0 else f"mknod: {error_name(made)}"


def is_root(pid: int, fd: int, what: str) -> bool:
    """Is this the fd of the shared directory, and not of the sandbox's /proc?"""
    is_directory = what == "/" or what.endswith("/share")
    path = Path(f"/proc/{pid}/fd/{fd}")
    return is_directory and path.stat().st_dev != Path("/proc").stat().st_dev


def dot_dot_of_the_share(worker: Injector, _scene: Scene) -> str:
    """Where `..` of the root of the share leads."""
    root = next(fd for fd, what in worker.fds().items() if is_root(worker.pid, fd, what))
    above = worker.call("openat", root, "..", os.O_PATH | os.O_DIRECTORY)
    if above < 0:
        return error_name(above)
    fds = [Path(f"/proc/{worker.pid}/fd/{fd}").stat() for fd in (root, above)]
    worker.call("close", above)
    return "itself" if os.path.samestat(*fds) else "ok"


OUT: Final = "ENOENT"  # there is no such path
ATTEMPTS: Final[dict[str, tuple[Attempt, dict[str, str]]]] = {}


def attempts(name: str, attempt: Attempt, *expected: str) -> None:
    ATTEMPTS[name] = (attempt, dict(zip(MODES, expected, strict=True)))


# name, attempt, then the result that is expected in each of MODES
attempts("above each fd", open_above_each_fd, *["denied"] * 4, "ok", *["denied"] * 3)
attempts(
    "handle with each fd",
    open_by_handle_with_each_fd,
    *["denied"] * 3,
    "SIGSYS",
    "denied",
    *["SIGSYS"] * 3,
)
attempts(
    "handle with each link",
    open_by_handle_with_each_link,
    *["denied"] * 3,
    "SIGSYS",
    "ok",
    *["SIGSYS"] * 3,
)
attempts(
    "dot dot of the share",
    dot_dot_of_the_share,
    *["itself"] * 3,
    *["ok"] * 2,
    *["itself"] * 2,
    "ok",
)
attempts(
    "read", path_call("openat", os.O_RDONLY), OUT, OUT, OUT, "EACCES", "ok", OUT, OUT, "EACCES"
)
attempts("write", path_call("openat", os.O_RDWR), OUT, OUT, OUT, "EACCES", "ok", OUT, OUT, "EACCES")
attempts("O_PATH", path_call("openat", os.O_PATH), OUT, OUT, OUT, "ok", "ok", OUT, OUT, "ok")
attempts("unlink", path_call("unlinkat", 0), OUT, OUT, OUT, "EACCES", "ok", OUT, OUT, "EACCES")
attempts("chmod", path_call("fchmodat", 0o644), OUT, OUT, OUT, "ok", "ok", OUT, OUT, "ok")
attempts(
    "chown", path_call("fchownat", NOBODY, NOBODY, 0), OUT, OUT, OUT, "ok", "ok", OUT, OUT, "EPERM"
)
attempts("rename", rename_victim, OUT, OUT, OUT, "EACCES", "ok", OUT, OUT, "EACCES")
attempts("mkdir", make_directory_outside, OUT, OUT, OUT, "EACCES", "ok", OUT, OUT, "EACCES")
attempts("root of a process", root_of_a_user_process, *[OUT] * 7, "EACCES")
attempts("command line", command_line_of_others, *[OUT] * 7, "ok")
attempts(
    "signal",
    signal_a_process,
    *["ESRCH"] * 2,
    *["EPERM"] * 3,
    *["ESRCH"] * 2,
    "EPERM",
)
attempts("lock memory", lock_memory, *["EPERM"] * 8)
attempts(
    "device",
    open_a_device_made_by_mknod,
    "EACCES",
    "mknod: EPERM",
    "EACCES",
    "ok",
    "ok",
    "EACCES",
    *["mknod: EPERM"] * 2,
)


def test_every_attempt(scene: Scene, mode: str) -> None:
    expected = {name: by_mode[mode] for name, (_, by_mode) in ATTEMPTS.items()}
    results: dict[str, str] = {}
    while len(results) < len(ATTEMPTS):
        with Frontend(scene.daemon.socket) as frontend:
            Guest(frontend.setup(1)).init()
            try_until_killed(scene, results)
    differing = {name: found for name, found in results.items() if found != expected[name]}
    # A filter of system calls that kills the worker is as good as any errno.
    assert all(found == "SIGSYS" and expected[name] != "ok" for name, found in differing.items()), (
        differing
    )


def try_until_killed(scene: Scene, results: dict[str, str]) -> None:
    """In one worker, make the attempts that have no result yet, as long as the worker lives."""
    pid = scene.daemon.the("worker 0")
    with Injector(pid) as worker:
        before = worker.fds().keys()
        for name in [name for name in ATTEMPTS if name not in results]:
            scene.victim.write_text("untouched")
            scene.victim.chmod(0o600)
            scene.daemon.give(scene.victim)
            try:
                results[name] = ATTEMPTS[name][0](worker, scene)
            except Killed as killed:
                results[name] = killed.signal.name
                return
            for fd in worker.fds().keys() - before:
                worker.call("close", fd)
