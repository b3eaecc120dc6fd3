# SPDX-License-Identifier: Apache-2.0
"""Tools that start virtiofsd depend on more than its options: on log lines, files and the exit
status."""

import fcntl
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.waiting import HANG

from .daemon import FAKE, ROOT, Daemon, has_ended, wait_until
from .frontend import Frontend

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}

MIGRATION = ("--migration-mode=find-paths", "--migration-on-error=guest-error")


def test_options_of_migration_are_accepted_and_said_to_do_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, *MIGRATION, "--log-level=debug") as daemon:
        assert "these have no effect: --migration-mode, --migration-on-error" in daemon.text()


# The line that Kata Containers waits for, in share_virtio_fs_standalone.rs of runtime-rs and in
# virtiofsd.go of 1.x. The latter also looks for the three dots.
LISTENS = "Waiting for vhost-user socket connection..."


@pytest.mark.parametrize(
    ("options", "who"),
    [
        ((), "root alone: --socket-group lets a group connect"),
        (("--socket-group=daemon",), "root, and the group 'daemon'"),
    ],
)
def test_stderr_says_in_the_words_of_the_peers_that_a_vmm_can_connect(
    tmp_path: Path, requires: Callable[[str], str], options: tuple[str, ...], who: str
) -> None:
    """The line also names the users that can connect, because QEMU prints only "Permission denied"
    for others."""
    requires("root")
    with Daemon(tmp_path, *options) as daemon:
        assert f"{LISTENS} on {daemon.path} (for {who})\n" in daemon.text()


def test_stderr_says_so_of_an_inherited_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "inherited"))
        listener.listen()
        fd = listener.fileno()
        with Daemon(tmp_path, f"--fd={fd}", pass_fds=(fd,)) as daemon:
            wait_until(lambda: f"{LISTENS} on the inherited socket\n" in daemon.text())


@pytest.mark.parametrize("keep_listening", [False, True])
def test_the_end_of_a_share_names_the_option_that_keeps_it(
    tmp_path: Path, keep_listening: bool
) -> None:
    """When its guest reboots, Cloud Hypervisor disconnects and connects again."""
    options = ("--keep-listening",) if keep_listening else ()
    with Daemon(tmp_path, *options) as daemon:
        frontend = Frontend(daemon.path)
        frontend.realize(1)
        frontend.close()
        wait_until(lambda: "the VMM went away" in daemon.text())
        line = next(line for line in daemon.text().splitlines() if "the VMM went away" in line)
        assert ("--keep-listening" in line) == (not keep_listening)


def pid_file(daemon: Daemon) -> Path:
    return daemon.path.with_name(f"{daemon.path.name}.pid")


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_a_file_beside_the_socket_has_the_pid_and_is_locked(tmp_path: Path) -> None:
    """virtme-ng looks for the file five times, and ends the process whose pid is in the file."""
    with Daemon(tmp_path) as daemon:
        path = pid_file(daemon)
        assert path.read_text() == f"{daemon.process.pid}\n"
        assert path.stat().st_mode & 0o777 == 0o600
        assert is_locked(path)
        daemon.kill_supervisor()
        wait_until(lambda: "took over from a supervisor that died" in daemon.text())
        assert path.read_text() == f"{daemon.process.pid}\n"
        assert is_locked(path)
        daemon.process.terminate()
        assert daemon.end() == 0
        assert not path.exists()


def test_the_lock_lasts_until_all_is_cleaned_up(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        path = pid_file(daemon)
        launcher = daemon.find("launcher")
        assert launcher
        daemon.process.kill()
        wait_until(lambda: has_ended(launcher))
        assert not path.exists()
        assert not daemon.path.exists()


def test_neither_keeper_nor_supervisor_can_write_into_it(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        path = str(pid_file(daemon))
        holders = {
            process.cmdline()[0].split()[-1]
            for process in [daemon.process_group, *daemon.process_group.children(recursive=True)]
            if path in [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
        }
        assert holders == {"launcher", "deputy"}


def test_there_is_no_such_file_for_an_inherited_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "inherited"))
        listener.listen()
        fd = listener.fileno()
        with Daemon(tmp_path, f"--fd={fd}", pass_fds=(fd,)) as daemon:
            wait_until(lambda: LISTENS in daemon.text())
            assert not list(tmp_path.glob("*.pid"))


def test_with_daemonize_the_file_names_the_process_that_stays(tmp_path: Path) -> None:
    path = tmp_path / "vm.sock.pid"
    arguments = [f"--socket-path={tmp_path}/vm.sock", f"--shared-dir={tmp_path}", "--daemonize"]
    subprocess.run([*FAKE, *arguments], check=True, timeout=HANG, env=ENVIRONMENT)
    keeper = psutil.Process(int(path.read_text()))
    assert keeper.cmdline()[0].startswith("vfsd: vm keeper")
    keeper.terminate()
    wait_until(lambda: has_ended(keeper))
    wait_until(lambda: not path.exists())


def test_what_a_daemon_left_behind_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "vm001.sock.pid").write_text("999999999999\n")
    with Daemon(tmp_path) as daemon:
        assert pid_file(daemon).read_text() == f"{daemon.process.pid}\n"


@pytest.mark.parametrize("trap", ["symbolic link", "hard link", "pipe"])
def test_nothing_is_written_into_what_somebody_put_there(tmp_path: Path, trap: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "vm001.sock.pid"
    victim.write_text("precious")
    if trap == "symbolic link":
        path.symlink_to(victim)
    elif trap == "hard link":
        os.link(victim, path)
    else:
        os.mkfifo(path)
    with Daemon(tmp_path) as daemon:
        assert daemon.end() == 1
        assert f"--socket-path: '{daemon.path}': " in daemon.text()
        assert str(path) in daemon.text()
        assert not daemon.path.exists()
    assert victim.read_text() == "precious"
    assert os.path.lexists(path)
