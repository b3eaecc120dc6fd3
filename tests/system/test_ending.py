# SPDX-License-Identifier: Apache-2.0
"""How a mount of `vfsd mount` ends, and that no process hangs when it ends."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.conftest import require
from tests.killing import kill_family
from tests.waiting import HANG, wait_until

from .conftest import BACKENDS, Backend, Share, serve
from .mounted import Mounted, mounts, run

INTERRUPTED = 130  # the second signal came while the back-end was waited for


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for what in ("root", "/dev/fuse"):
        require(what)
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


@pytest.fixture
def user() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that a test starts; they are killed after the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait(HANG)


def test_umount_ends_it(share: Share) -> None:
    run("echo x >a", share.mount)
    assert share.mounted.unmount() == 0
    assert share.mounted.errors() == ""
    assert (share.host / "a").read_text() == "x\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(our_share: Share, number: signal.Signals) -> None:
    run("echo x >a", our_share.mount)
    our_share.mounted.process.send_signal(number)
    assert our_share.mounted.wait() == 0
    assert not our_share.mounted.is_mounted()
    assert our_share.mounted.errors() == ""


def test_a_signal_ends_it_although_it_is_in_use(
    our_share: Share, user: list[subprocess.Popen[bytes]]
) -> None:
    user.append(subprocess.Popen(["sleep", "100"], cwd=our_share.mount))
    our_share.mounted.process.terminate()
    assert our_share.mounted.wait() == 0
    assert "is in use" in our_share.mounted.errors()
    assert not our_share.mounted.is_mounted()


def test_a_lazy_umount_serves_until_the_last_user_is_gone(
    our_share: Share, user: list[subprocess.Popen[bytes]]
) -> None:
    script = "read line; echo $line >late; read line"
    process = subprocess.Popen(["bash", "-c", script], cwd=our_share.mount, stdin=subprocess.PIPE)
    user.append(process)
    assert process.stdin
    subprocess.run(["umount", "-l", str(our_share.mount)], timeout=HANG, check=True)
    process.stdin.write(b"still\n")
    process.stdin.flush()
    wait_until((our_share.host / "late").exists)
    assert our_share.mounted.process.poll() is None
    process.stdin.close()
    process.wait(HANG)
    assert our_share.mounted.wait() == 0


def test_the_same_daemon_is_mounted_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = serve(Backend("", 2, ("--keep-listening",)), stack)
        run("echo x >a", first.mount)
        assert first.mounted.unmount() == 0
        with Mounted(tmp_path, str(first.daemon.socket)) as again:
            assert run("cat a", again.path) == "x\n"
            assert again.unmount() == 0


def test_users_get_an_error_when_the_back_end_is_killed(
    share: Share, user: list[subprocess.Popen[bytes]]
) -> None:
    (share.host / "large").write_bytes(bytes(1 << 20))
    loop = "while dd if=large of=/dev/null bs=4k iflag=direct status=none; do :; done; exit 42"
    user += [
        subprocess.Popen(["bash", "-c", loop], cwd=share.mount, stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    time.sleep(0.3)
    kill_family(share.daemon.process.pid)
    assert [process.wait(HANG) for process in user] == [42] * 3
    assert_covered(share, "the back-end has closed the connection")
    assert share.mounted.unmount() == 1
    assert not share.mounted.is_mounted()


def assert_covered(share: Share, why: str) -> None:
    """The mount stays, so no program writes into the folder below it by mistake."""
    path = share.mount
    wait_until(lambda: "until it is unmounted" in share.mounted.errors())
    assert share.mounted.errors() == (
        f"vfsd: {why}; every access to '{path}' fails until it is unmounted\n"
    )
    for attempt in (f"echo late >{path}/late", f"ls {path}", f"cat {path}/large"):
        run(f"! ({attempt})", share.host)
    assert share.mounted.process.poll() is None
    assert share.mounted.is_mounted()


def test_a_signal_ends_a_mount_that_has_lost_its_back_end(our_share: Share) -> None:
    kill_family(our_share.daemon.process.pid)
    assert_covered(our_share, "the back-end has closed the connection")
    our_share.mounted.process.terminate()
    assert our_share.mounted.wait() == 1
    assert not our_share.mounted.is_mounted()
    assert not list(our_share.mount.iterdir())


def test_a_daemon_that_is_restarted_is_mounted_again(our_share: Share, tmp_path: Path) -> None:
    """The operator unmounts the mount that has lost its back-end first."""
    kill_family(our_share.daemon.process.pid)
    assert_covered(our_share, "the back-end has closed the connection")
    assert our_share.mounted.unmount() == 1
    with Mounted(tmp_path, "--source", str(our_share.host)) as again:
        run("echo x >a", again.path)
        assert again.unmount() == 0


def test_a_stopped_back_end_does_not_keep_it(
    share: Share, user: list[subprocess.Popen[bytes]]
) -> None:
    """The second signal ends `vfsd mount` while umount(2) still waits for a back-end that is
    stuck."""
    run("echo x >a", share.mount)
    family = [psutil.Process(share.daemon.process.pid)]
    family += family[0].children(recursive=True)
    for member in family:
        member.suspend()
    try:
        user.append(subprocess.Popen(["cat", share.mount / "b"], stderr=subprocess.DEVNULL))
        time.sleep(0.3)
        share.mounted.process.terminate()
        time.sleep(0.3)
        share.mounted.process.terminate()
        user[0].wait(HANG)
        assert not share.mounted.is_mounted()
    finally:
        for member in family:
            member.resume()
    assert share.mounted.wait() in (0, 1, INTERRUPTED)


def test_an_aborted_connection_stays_mounted(our_share: Share) -> None:
    device = next(
        line.split()[2]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(our_share.mount)
    )
    control = Path("/sys/fs/fuse/connections") / device.split(":")[1] / "abort"
    if not control.exists():
        subprocess.run(["mount", "-t", "fusectl", "none", control.parents[1]], check=False)
    require(str(control))
    control.write_text("1")
    assert_covered(our_share, "the FUSE connection was aborted")
    assert our_share.mounted.unmount() == 1


def test_two_mounts_at_once() -> None:
    with ExitStack() as stack:
        one, two = (serve(BACKENDS[name], stack) for name in ("1-queue", "4-queues"))
        for share in (one, two):
            run(f"echo {share.backend.queues} >who", share.mount)
        run(f"cp {one.mount}/who {two.mount}/other; cp {two.mount}/who {one.mount}/other", one.host)
        assert (one.host / "other").read_text() == "4\n"
        assert (two.host / "other").read_text() == "1\n"
        assert two.mounted.unmount() == 0
        assert run("cat who", one.mount) == "1\n"


def test_source_starts_and_ends_a_daemon_of_its_own(source: Path, tmp_path: Path) -> None:
    with Mounted(tmp_path, "--source", str(source), "--queues", "3") as mounted:
        assert mounted.line == f"mounted {source} on {mounted.path}, 3 queues"
        run("echo x >a", mounted.path)
        family = psutil.Process(mounted.process.pid).children(recursive=True)
        assert family
        mounted.process.send_signal(signal.SIGINT)
        assert mounted.wait() == 0
    assert (source / "a").read_text() == "x\n"
    assert not psutil.wait_procs(family, 5)[1]
    assert str(mounted.path) not in mounts()


def test_source_passes_arguments_on(source: Path, tmp_path: Path) -> None:
    with Mounted(tmp_path, "--source", str(source), passed_on=["--readonly"]) as mounted:
        assert run("touch a 2>&1 || true", mounted.path).endswith("Read-only file system\n")
        assert mounted.unmount() == 0
