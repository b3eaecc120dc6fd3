# SPDX-License-Identifier: Apache-2.0
"""The shared directory is the directory of the start, whatever its path leads to later."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.sandbox_modes import SandboxMode, in_every_mode
from tests.waiting import HANG

from .daemon import Daemon, wait_until
from .driver import Frontend
from .fuse import ROOT, Guest, Op, names


def names_in_root(daemon: Daemon) -> set[str]:
    """Which of the two files the guest of a new VMM sees in the root directory."""
    with Frontend(daemon.socket) as frontend:
        guest = Guest(frontend.setup(1))
        guest.init()
        return {
            name
            for name in ("shared", "secret")
            if not guest.ask(Op.LOOKUP, ROOT, names(name.encode()), room=128).error
        }


def swap_the_folder_above(share: Path, secret: Path) -> None:
    share.parent.rename(share.parent.with_name("away"))
    share.parent.symlink_to(secret.parent)


def swap_the_directory(share: Path, secret: Path) -> None:
    share.rename(share.with_name("away"))
    share.symlink_to(secret)


@in_every_mode
@pytest.mark.parametrize("swap", [swap_the_folder_above, swap_the_directory])
def test_a_later_vmm_gets_the_directory_that_was_opened_at_the_start(
    sandbox_mode: SandboxMode, swap: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """The owner of a folder on the path moves the directory away and puts a symlink in its
    place."""
    share, secret = tmp_path / "owned/etc", tmp_path / "host/etc"
    for folder, name in ((share, "shared"), (secret, "secret")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    with Daemon("--keep-listening", share=share, mode=sandbox_mode) as daemon:
        assert names_in_root(daemon) == {"shared"}
        swap(share, secret)
        # The first of these two VMMs may get a pool that was made before the swap.
        assert names_in_root(daemon) == {"shared"}
        assert names_in_root(daemon) == {"shared"}


@pytest.mark.sandbox_modes("namespace", "userns", "chroot")
def test_no_process_of_the_sandbox_holds_an_fd_of_the_hosts_mount(
    sandbox_mode: SandboxMode,
) -> None:
    """`..` of the fd with which the host opened the directory would lead out of the sandbox."""
    with Daemon(mode=sandbox_mode) as daemon, Frontend(daemon.socket) as frontend:
        Guest(frontend.setup(1)).init()
        ours = os.open(daemon.share, os.O_PATH)
        hosts = mount_of(os.getpid(), ours)
        os.close(ours)
        for pid in [*daemon.titled("pool"), *daemon.titled("worker")]:
            fds = [int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()]
            assert hosts not in [mount_of(pid, fd) for fd in fds if fd > 2]


def mount_of(pid: int, fd: int) -> str:
    """The id of the mount that an fd of a process belongs to."""
    info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
    return info.partition("mnt_id:")[2].split()[0]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system with a file `shared` in it; the test unmounts it."""
    require("root")
    subprocess.run(["mount", "-t", "tmpfs", "share", str(tmp_path)], check=True)
    (tmp_path / "shared").touch()
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=False, capture_output=True)


@pytest.mark.parametrize("options", ["--sandbox=namespace", "--userns", "--sandbox=chroot"])
def test_a_share_that_was_unmounted_is_served_to_no_other_vmm(options: str, mounted: Path) -> None:
    """A guest that is connected keeps its files."""
    with Daemon("--keep-listening", options, share=mounted) as daemon:
        with Frontend(daemon.socket) as frontend:
            guest = Guest(frontend.setup(1))
            guest.init()
            assert subprocess.run(["umount", mounted], check=False, capture_output=True).returncode
            subprocess.run(["umount", "-l", mounted], check=True)
            guest.lookup(ROOT, b"shared")
        assert daemon.process.wait(HANG) == 1
        (line,) = (line for line in daemon.log.read_text().splitlines() if "error: " in line)
        assert line.endswith(
            f"'{mounted}' was unmounted on the host, so no sandbox can be made of it; mount it and"
            " start virtiofsd again"
        )


def test_without_a_sandbox_a_share_that_was_unmounted_is_served(mounted: Path) -> None:
    with Daemon("--keep-listening", "--sandbox=none", share=mounted) as daemon:
        assert names_in_root(daemon) == {"shared"}
        subprocess.run(["umount", "-l", mounted], check=True)
        assert names_in_root(daemon) == {"shared"}
        assert names_in_root(daemon) == {"shared"}


@pytest.mark.parametrize("options", [(), ("--readonly",)])
def test_a_directory_that_is_mounted_read_only_is_pointed_out(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    """As in a service whose unit has ProtectSystem=strict; the operator may have meant it."""
    require("root")
    mounted = ["mount", "-t", "tmpfs", "-o", "ro", "share", str(tmp_path)]
    subprocess.run(mounted, check=True)
    try:
        with Daemon(*options, share=tmp_path) as daemon:
            wait_until(lambda: "Waiting for" in daemon.log.read_text(), 20, "a wait for a VMM")
            is_said = f"'{tmp_path}' is mounted read-only" in daemon.log.read_text()
            assert is_said == (options == ())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
