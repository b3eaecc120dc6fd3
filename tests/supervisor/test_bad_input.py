# SPDX-License-Identifier: Apache-2.0
"""An operator's mistakes: each is reported in one line that names the option, what is wrong with
it, and what to do."""

import grp
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import HANG
from vfsd.supervisor import cli

from .daemon import ROOT, Daemon

VIRTIOFSD = (sys.executable, "-m", "vfsd.virtiofsd")


def run(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    """Run virtiofsd, which must end by itself."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*VIRTIOFSD, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        **more,
    )


def complaint(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line on stderr of a command that failed."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("virtiofsd: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("virtiofsd: ").strip()


@pytest.fixture
def share(tmp_path: Path) -> Path:
    path = tmp_path / "share"
    path.mkdir()
    return path


Refused = Callable[..., str]
Requires = Callable[[str], str]


@pytest.fixture
def refused(tmp_path: Path, share: Path) -> Refused:
    """A function that runs virtiofsd with valid options, except for its arguments, and returns the
    error message."""

    def call(*switches: str, **changes: str) -> str:
        arguments = {"shared-dir": str(share), "socket-path": str(tmp_path / "vm.sock")} | {
            name.replace("_", "-"): value for name, value in changes.items()
        }
        valued = (f"--{name}={value}" for name, value in arguments.items())
        return complaint(run(*switches, *valued))

    return call


def test_a_wrong_option_ends_with_status_2() -> None:
    done = run("--shraed-dir=/srv")
    assert complaint(done, 2) == "unknown option --shraed-dir; did you mean --shared-dir?"


def test_conflicting_options_are_both_named(share: Path) -> None:
    done = run(f"--shared-dir={share}", "--socket-path=/x", "--fd=3")
    assert complaint(done, 2) == "--fd and --socket-path exclude each other; give one of them"


def test_a_missing_directory(refused: Refused, tmp_path: Path) -> None:
    assert refused(shared_dir=str(tmp_path / "none")) == (
        f"--shared-dir: '{tmp_path}/none' does not exist; create the directory first"
    )


def test_a_file_is_no_directory(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(shared_dir=str(tmp_path / "file")).endswith(
        "is not a directory; only directories can be shared"
    )


def test_a_symbolic_link_is_refused_and_its_target_named(
    refused: Refused, tmp_path: Path, share: Path
) -> None:
    (tmp_path / "link").symlink_to(share)
    assert refused(shared_dir=f"{tmp_path}/link") == (
        f"--shared-dir: '{tmp_path}/link' is a symbolic link; give the directory itself, '{share}',"
        f" or '{tmp_path}/link/'"
    )


def test_a_symbolic_link_to_nothing_or_a_file_is_no_directory(
    refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("target")
    assert refused(shared_dir=f"{tmp_path}/link/").endswith("create the directory first")
    (tmp_path / "target").touch()
    assert refused(shared_dir=f"{tmp_path}/link/").endswith("Not a directory")


def test_the_option_is_named_as_it_was_given(tmp_path: Path) -> None:
    done = run("-o", f"source={tmp_path}/none", f"--socket-path={tmp_path}/s")
    assert complaint(done).startswith("-o source: ")


def test_a_socket_whose_name_is_too_long(refused: Refused, tmp_path: Path) -> None:
    path = str(tmp_path / ("x" * 108))
    assert refused(socket_path=path) == (
        f"--socket-path: '{path}': the name of the socket has 108 bytes; it may have 107"
    )


def test_the_folder_of_the_socket_is_missing(refused: Refused, tmp_path: Path) -> None:
    path = f"{tmp_path}/none/vm.sock"
    assert refused(socket_path=path) == (
        f"--socket-path: '{path}': its folder does not exist; create it first"
    )


def test_something_else_is_where_the_socket_should_be(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert refused(socket_path=f"{tmp_path}/file").endswith(
        "exists and is not a socket; remove it or choose another path"
    )
    assert (tmp_path / "file").read_text() == "precious"


def test_a_socket_in_use_is_left_alone(refused: Refused, tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        for _ in range(3):
            assert refused(socket_path=str(daemon.path)) == (
                f"--socket-path: '{daemon.path}' is in use by a running program;"
                " stop it or choose another path"
            )
        assert daemon.process.poll() is None
        assert daemon.path.exists()


def test_a_socket_in_use_with_a_full_backlog_is_left_alone(
    refused: Refused, tmp_path: Path
) -> None:
    path = str(tmp_path / "busy")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        assert "in use by a running program" in refused(socket_path=path)


def test_a_stale_socket_is_taken_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "vm001.sock"))
    with Daemon(tmp_path) as daemon:
        assert "Waiting for vhost-user" in daemon.text()


def test_an_unknown_group(refused: Refused, tmp_path: Path) -> None:
    assert refused(socket_group="no-such-group") == (
        "--socket-group: 'no-such-group': there is no such group"
    )
    assert not (tmp_path / "vm.sock").exists()


def test_the_socket_is_for_its_owner_or_its_group(tmp_path: Path) -> None:
    for name in ("owner", "group"):
        (tmp_path / name).mkdir()
    with Daemon(tmp_path / "owner") as daemon:
        assert daemon.path.stat().st_mode & 0o777 == 0o700
    group = grp.getgrgid(os.getegid()).gr_name
    with Daemon(tmp_path / "group", f"--socket-group={group}") as daemon:
        assert daemon.path.stat().st_mode & 0o777 == 0o770
        assert daemon.path.stat().st_gid == os.getegid()


def test_more_open_files_than_allowed(refused: Refused) -> None:
    text = refused("--strict", rlimit_nofile=str(1 << 29))
    assert text.startswith(
        "--rlimit-nofile: 536870912 open files are not allowed; the hard limit is "
    )


def test_a_cpu_that_is_not_there(refused: Refused) -> None:
    assert refused(queue_cpus="60000") == (
        "--queue-cpus: CPU 60000 does not exist, or this process may not use it; see taskset(1), or"
        " the service's cpuset"
    )


@pytest.mark.parametrize("option", ["--userns", "--uid-map=:0:0:1:"])
def test_a_user_namespace_needs_the_others(share: Path, option: str) -> None:
    done = run(f"--shared-dir={share}", "--socket-path=/x", "--sandbox=chroot", option)
    assert complaint(done, 2) == (
        f"{option.partition('=')[0]} needs --sandbox=namespace, but --sandbox says chroot;"
        " remove one of them"
    )


def test_an_fd_that_is_not_open(share: Path) -> None:
    done = run(f"--shared-dir={share}", "--fd=99")
    assert complaint(done) == (
        "--fd: file descriptor 99 is not open; pass a socket from the parent process"
    )


def test_an_fd_that_is_not_a_socket(share: Path) -> None:
    with (share / "file").open("w") as file:
        fd = file.fileno()
        done = run(f"--shared-dir={share}", f"--fd={fd}", pass_fds=[fd])
    assert complaint(done) == (
        f"--fd: file descriptor {fd} is not a socket; pass a listening unix stream socket"
    )


def test_an_fd_that_is_another_kind_of_socket(share: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        fd = datagrams.fileno()
        done = run(f"--shared-dir={share}", f"--fd={fd}", pass_fds=[fd])
    assert "is not a unix stream socket" in complaint(done)


def test_an_fd_that_nobody_listens_on(share: Path) -> None:
    with socket.socket(socket.AF_UNIX) as idle:
        fd = idle.fileno()
        done = run(f"--shared-dir={share}", f"--fd={fd}", pass_fds=[fd])
    assert complaint(done) == (
        f"--fd: file descriptor {fd} neither listens nor is connected; call listen() on it first"
    )


@pytest.mark.parametrize(
    ("sandbox", "what", "alternative"),
    [
        ("namespace", "cannot create namespaces", "--sandbox=none"),
        ("chroot", "cannot chroot", "--sandbox=none"),
    ],
)
def test_no_permission_for_the_sandbox(
    share: Path, tmp_path: Path, requires: Requires, sandbox: str, what: str, alternative: str
) -> None:
    arguments = [*VIRTIOFSD, f"--shared-dir={share}", f"--socket-path={tmp_path}/vm.sock"]
    forbid = "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all"
    script = f"{forbid} --inh-caps=-all {shlex.join(arguments)} --sandbox={sandbox}"
    done = subprocess.run(
        [requires("unshare"), "-Ur", "sh", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert "keeper and supervisor stay root, without capabilities" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert done.returncode == 1
    assert line.startswith(f"vfsd: vm: error: {what}")
    assert alternative in line
    assert not (tmp_path / "vm.sock").exists()


def test_a_capability_that_does_not_exist(share: Path, tmp_path: Path) -> None:
    done = run(f"--shared-dir={share}", f"--socket-path={tmp_path}/vm.sock", "--modcaps=+fly")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "files can be open" not in line]
    assert line.startswith("vfsd: vm: error: --modcaps: there is no capability 'fly'")


def test_a_container_without_proc(share: Path, tmp_path: Path, requires: Requires) -> None:
    requires("root")
    script = 'mount -t tmpfs none /proc; exec "$@"'
    command = [*VIRTIOFSD, f"--shared-dir={share}", f"--socket-path={tmp_path}/vm.sock"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", *command],
        capture_output=True, text=True, timeout=HANG, check=False,
    )  # fmt: skip
    assert complaint(done) == "/proc is not mounted; try: mount -t proc proc /proc"


def test_help_version_and_capabilities_need_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--print-capabilities"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "type": "fs",
        "features": [
            "separate-options",
            "posix-acl-negotiation-mode",
            "security-label-negotiation-mode",
        ],
    }
    assert cli.main(["-V"]) == 0
    assert capsys.readouterr().out.startswith("virtiofsd ")
    assert cli.main(["--help"]) == 0
    assert "--shared-dir=DIR, -o source=DIR" in capsys.readouterr().out
