# SPDX-License-Identifier: Apache-2.0
"""The users of a sandbox: --userns, and --uid-map and --gid-map through newuidmap or by root."""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.worker.pool_process import FS
from tests.worker.sandboxed import LIBC, become, run, syscall
from vfsd.worker.sandbox import IsolationError, Sandbox

USER: Final = 12345
CLONE_NEWNS: Final = 0x20000
MS_REC_PRIVATE: Final = 0x4000 | 1 << 18
MAPS: Final[dict[str, Any]] = {
    "uid_map": [[0, USER, 1], [1, 700000, 1000]],
    "gid_map": [[0, 700000, 500]],
}


def unshare_mounts() -> None:
    assert LIBC.unshare(CLONE_NEWNS) == 0
    assert LIBC.mount(None, b"/", None, ctypes.c_ulong(MS_REC_PRIVATE), None) == 0


@pytest.fixture
def user(tmp_path: Path, requires: Callable[[str], str]) -> Callable[[], None]:
    """A function that makes this process one of an ordinary user with subordinate ids. The files of
    /etc that say so are visible to this process alone."""
    for program in ("newuidmap", "newgidmap", "root"):
        requires(program)
    (tmp_path / "passwd").write_text(
        f"{Path('/etc/passwd').read_text()}vfsd-test:x:{USER}:{USER}::/:/bin/sh\n"
    )
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text("vfsd-test:700000:1000\n")
        Path("/etc", name).touch()

    def prepare() -> None:
        unshare_mounts()
        for name in ("passwd", "subuid", "subgid"):
            command = ["mount", "--bind", str(tmp_path / name), f"/etc/{name}"]
            subprocess.run(command, check=True)
        become(USER)

    return prepare


def maps(sandbox: Sandbox) -> Any:
    """The id maps of this process's namespace, and its real and effective ids in that namespace.

    The ids are read from /proc, since the filter allows no call that returns the real ids.
    """

    def lines(name: str) -> list[list[str]]:
        fd = os.open(f"self/{name}", os.O_RDONLY, dir_fd=sandbox.proc_fd)
        text = os.read(fd, 9999).decode()
        os.close(fd)
        return [line.split() for line in text.splitlines()]

    status = {row[0]: row[1:3] for row in lines("status") if row}
    return {"uids": lines("uid_map"), "ids": [int(n) for n in status["Uid:"] + status["Gid:"]]}


def make_file(path: str) -> None:
    """Create a file without Python's open(), which asks whether the file is a terminal by a system
    call that the filter does not allow."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def test_several_ranges_exist(folder: Path, user: Callable[[], None]) -> None:
    got = run(folder, maps, prepare=user, **MAPS)
    assert got["uids"] == [["0", str(USER), "1"], ["1", "700000", "1000"]]
    assert got["ids"] == [0] * 4


def test_the_guests_users_own_files(folder: Path, user: Callable[[], None]) -> None:
    def probe(sandbox: Sandbox) -> None:
        for uid in (0, 1000):
            make_file(f"/of-{uid}")
            os.chown(f"of-{uid}", uid, 7, dir_fd=sandbox.root_fd)

    run(folder, probe, prepare=user, **MAPS)
    assert (folder / "of-0").stat().st_uid == USER
    assert (folder / "of-1000").stat().st_uid == 700999
    assert (folder / "of-1000").stat().st_gid == 700007


def test_the_helper_is_gone_and_nothing_is_left_of_it(
    folder: Path, user: Callable[[], None]
) -> None:
    def probe(sandbox: Sandbox) -> Any:
        table = os.open("self/fd", os.O_RDONLY, dir_fd=sandbox.proc_fd)
        kinds = []
        for name in os.listdir(table):  # noqa: PTH208
            with contextlib.suppress(FileNotFoundError):  # the fd that lists the folder
                kinds.append(os.readlink(name, dir_fd=table))
        status = os.open("self/status", os.O_RDONLY, dir_fd=sandbox.proc_fd)
        lines = os.read(status, 9999).decode().splitlines()
        caps = [line.split()[1] for line in lines if line.startswith(("CapPrm", "CapBnd"))]
        return [sum(kind.startswith("pipe:") for kind in kinds), caps, os.getpid()]

    pipes, caps, pid = run(folder, probe, prepare=user, **MAPS)
    plain_pipes, plain_caps, plain_pid = run(folder, probe, uid=USER)
    assert (pipes, caps, pid) == (plain_pipes, plain_caps, plain_pid)


def test_our_own_id_alone_needs_no_helper(folder: Path) -> None:
    own: dict[str, Any] = {"uid_map": [[0, USER, 1]], "gid_map": [[0, USER, 1]]}
    assert run(folder, maps, uid=USER, **own)["ids"] == [0] * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"uid_map": [[0, 1, 5]]}, ["map uids (newuidmap)", "not allowed", "--uid-map"]),
        ({"gid_map": [[0, 1, 5]]}, ["map gids (newgidmap)", "--gid-map"]),
        ({"uid_map": [[5, 700000, 5]]}, ["become root of the user namespace", "--uid-map"]),
    ],
)
def test_ids_of_others_are_refused(
    folder: Path, user: Callable[[], None], changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(IsolationError) as failed:
        run(folder, maps, prepare=user, **MAPS | changes)
    assert all(word in str(failed.value) for word in words), str(failed.value)
    assert "\n" not in str(failed.value)


def test_root_has_every_user_in_a_namespace_of_its_own(folder: Path) -> None:
    def probe(sandbox: Sandbox) -> Any:
        make_file("/file")
        os.chown("file", 1000, 7, dir_fd=sandbox.root_fd)
        return maps(sandbox)

    ours = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    got = run(folder, probe, userns=True)
    assert got["uids"] == [[inside, inside, count] for inside, _, count in ours]
    assert got["ids"] == [0] * 4
    assert ((folder / "file").stat().st_uid, (folder / "file").stat().st_gid) == (1000, 7)


def test_root_may_map_other_ids(folder: Path) -> None:
    def probe(sandbox: Sandbox) -> Any:
        make_file("/file")
        return maps(sandbox)

    os.chown(folder, 700000, 700000)
    got = run(folder, probe, uid_map=[[0, 700000, 1000]], gid_map=[[0, 700000, 500]])
    assert got == {"uids": [["0", "700000", "1000"]], "ids": [0] * 4}
    assert (folder / "file").stat().st_uid == 700000


def test_in_a_user_namespace_root_is_root_of_nothing_else(folder: Path) -> None:
    """The capabilities of that root, even ones that an operator has added, give no rights on the
    host."""

    def probe(_sandbox: Sandbox) -> list[str]:
        return [
            attempt(os.mknod, "device", stat.S_IFCHR | 0o600, os.makedev(1, 5)),
            attempt(os.mknod, "whiteout", stat.S_IFCHR | 0o600, 0),
            attempt(os.setxattr, "/file", "trusted.overlay.opaque", b"y"),
        ]

    (folder / "file").touch()
    assert run(folder, probe, userns=True, modcaps="+sys_admin") == ["EPERM", "ok", "EPERM"]
    (folder / "whiteout").unlink()
    assert run(folder, probe, modcaps="+sys_admin") == ["ok"] * 3


def test_in_a_user_namespace_no_handle_can_be_opened(folder: Path) -> None:
    def probe(_sandbox: Sandbox) -> str:
        mount = os.open("/", os.O_RDONLY)
        return attempt(syscall, "open_by_handle_at", mount, handle, os.O_RDONLY)

    (folder / "file").touch()
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
    path = os.fsencode(folder / "file")
    assert LIBC.name_to_handle_at(-100, path, handle, ctypes.byref(ctypes.c_int()), 0) == 0
    handles: dict[str, Any] = {
        "fs": FS | {"inode_file_handles": "prefer"},
        "seccomp": "none",  # a filter would refuse the call, which fails there
    }
    assert run(folder, probe, userns=True, **handles) == "EPERM"
    assert run(folder, probe, **handles) == "ok"


def attempt(call: Callable[..., object], *arguments: Any) -> str:
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def test_a_missing_helper_is_named(folder: Path, user: Callable[[], None], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    def prepare() -> None:
        unshare_mounts()
        for program in ("newuidmap", "newgidmap"):
            subprocess.run(
                ["mount", "--bind", str(tmp_path / "empty"), f"/usr/bin/{program}"], check=True
            )
        user()

    with pytest.raises(IsolationError, match=r"newgidmap: .*install the package uidmap"):
        run(folder, maps, prepare=prepare, **MAPS)
