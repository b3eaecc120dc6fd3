# SPDX-License-Identifier: Apache-2.0
"""The sandbox, as probes inside it see it and as /proc on the host shows a real pool and its
workers."""

import errno
import importlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.worker.pool_process import PoolProcess
from tests.worker.sandboxed import Raised, run
from vfsd.transport.native import check, lib
from vfsd.worker import capabilities, landlock
from vfsd.worker.isolation import STAGES
from vfsd.worker.sandbox import IsolationError, Sandbox

NewPool = Callable[..., PoolProcess]
MODES: Final = ("namespace", "chroot", "none")
NOBODY: Final = 12345
NAMESPACES: Final = {
    "namespace": {"mnt", "pid", "net", "ipc", "uts"},
    "chroot": {"mnt"},
    "none": set(),
}
KEPT: Final = "00000000880000db"


@pytest.fixture
def share(folder: Path) -> Path:
    (folder / "hello").write_text("hi")
    return folder


def listing(_sandbox: Sandbox) -> list[str]:
    return sorted(p.name for p in Path("/").iterdir())


def os_root(_sandbox: Sandbox) -> int:
    return Path("/").stat().st_ino


# Probes inside the sandbox.


@pytest.mark.parametrize("mode", ["namespace", "chroot"])
def test_the_share_is_all_there_is(share: Path, mode: str) -> None:
    assert run(share, listing, sandbox=mode) == ["hello"]


def test_an_ordinary_user_gets_namespaces_of_his_own(share: Path) -> None:
    def probe(sandbox: Sandbox) -> Any:
        return [listing(sandbox), os.getpid(), os.geteuid()]

    assert run(share, probe, uid=NOBODY) == [["hello"], 1, 0]


@pytest.mark.parametrize(
    ("mode", "uid"), [*((mode, None) for mode in MODES), ("namespace", NOBODY), ("none", NOBODY)]
)
def test_a_file_is_reopened_through_proc(share: Path, mode: str, uid: int | None) -> None:
    def probe(sandbox: Sandbox) -> str:
        table = os.open("self/fd", os.O_PATH, dir_fd=sandbox.proc_fd)
        path = os.open("hello", os.O_PATH, dir_fd=sandbox.root_fd)
        return os.read(os.open(str(path), os.O_RDONLY, dir_fd=table), 9).decode()

    assert run(share, probe, uid=uid, sandbox=mode) == "hi"


def test_proc_shows_nothing_but_the_sandbox(share: Path) -> None:
    def probe(sandbox: Sandbox) -> list[str]:
        return sorted(os.listdir(os.open(".", os.O_RDONLY, dir_fd=sandbox.proc_fd)))  # noqa: PTH208

    assert run(share, probe) == ["1", "self", "thread-self"]


def cover_a_part_of_proc() -> None:
    """Mount over a file of /proc, as service managers and containers do (ProtectKernelLogs=)."""
    check(lib.isolate_unshare(lib.NAMESPACE_MOUNT))
    check(lib.isolate_receive_mounts_only())
    subprocess.run(["mount", "--bind", "/dev/null", "/proc/kmsg"], check=True)


@pytest.mark.parametrize("userns", [False, True])
def test_a_service_whose_proc_is_covered_in_part(share: Path, userns: bool) -> None:
    assert run(share, listing, userns=userns, prepare=cover_a_part_of_proc) == ["hello"]


def test_no_path_leads_out(share: Path) -> None:
    def probe(sandbox: Sandbox) -> list[bool]:
        outside = ("../../../etc/passwd", "/etc/passwd", "/proc/self", "/dev/null")
        found = [Path(path).exists() for path in outside]
        os.fchdir(sandbox.proc_fd)
        return found + [Path(f"1/{name}/etc/passwd").exists() for name in ("root", "cwd")]

    assert run(share, probe) == [False] * 6


@pytest.mark.parametrize("mode", MODES)
def test_a_module_of_the_guest_is_not_imported(share: Path, mode: str) -> None:
    for folder in (share, share / Path(os.__file__).parent.relative_to("/")):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tomllib", "guestmodule"):
            (folder / f"{name}.py").write_text("raise SystemExit('the guest runs')")

    def probe(_sandbox: Sandbox) -> None:
        importlib.import_module("guestmodule")

    with pytest.raises(Raised, match="ModuleNotFoundError"):
        run(share, probe, sandbox=mode)


@pytest.fixture
def mounted(share: Path) -> Iterator[Path]:
    """The share as a mount of its own that is shared: what is mounted in it appears in other
    namespaces."""
    mount(share)
    subprocess.run(["mount", "--make-shared", str(share)], check=True)
    for name in ("early", "late"):
        (share / name).mkdir()
    yield share
    subprocess.run(["umount", "--recursive", str(share)], check=True)


def mount(where: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "vfsd-test", str(where)], check=True)


@pytest.mark.parametrize("uid", [None, NOBODY])
def test_a_submount_is_shared(mounted: Path, uid: int | None) -> None:
    def probe(_sandbox: Sandbox) -> list[str]:
        return [path.name for path in Path("/early").iterdir()]

    mount(mounted / "early")
    (mounted / "early" / "file").touch()
    assert run(mounted, probe, uid=uid) == ["file"]


def test_a_submount_that_comes_later_arrives(mounted: Path, new_pool: NewPool) -> None:
    pool = new_pool().start()
    mount(mounted / "late")
    (mounted / "late" / "file").touch()
    assert Path(f"/proc/{pool.pid}/root/late/file").exists()


def test_the_root_directory_can_be_shared() -> None:
    def probe(_sandbox: Sandbox) -> bool:
        return Path("/etc/passwd").exists()

    assert run(Path("/"), probe) is True


def test_umask_and_environment_are_empty(share: Path) -> None:
    def probe(_sandbox: Sandbox) -> Any:
        return [os.umask(0), dict(os.environ)]

    assert run(share, probe) == [0, {"TZ": "UTC0"}]


# Each failure is reported in one line.


@pytest.mark.parametrize(
    ("uid", "changes", "words"),
    [
        (NOBODY, {"sandbox": "chroot"}, ["chroot to", "not permitted", "--sandbox=namespace"]),
        (None, {"modcaps": "+flying"}, ["--modcaps", "flying", "capabilities(7)"]),
        (NOBODY, {"sandbox": "none", "modcaps": "+sys_time"}, ["--modcaps", "SYS_TIME", "itself"]),
    ],
)
def test_a_stage_that_fails_says_what_and_what_to_do(
    share: Path, uid: int | None, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(IsolationError) as failed:
        run(share, listing, uid=uid, **changes)
    assert all(word in str(failed.value) for word in words), str(failed.value)
    assert "\n" not in str(failed.value)


def test_without_the_right_to_make_namespaces_the_alternative_is_named(share: Path) -> None:
    def lose_sys_admin() -> None:
        capabilities.limit({"SYS_CHROOT", "SETPCAP", *capabilities.KEPT})

    with pytest.raises(IsolationError, match=r"create namespaces: .*--sandbox=none"):
        run(share, listing, prepare=lose_sys_admin)
    assert run(share, os_root, prepare=lose_sys_admin, sandbox="none") == os_root(Sandbox())


def test_a_chroot_that_would_not_hold_is_refused(share: Path) -> None:
    """Without the right to mount a /proc of its own, the sandbox would have the host's /proc, which
    leads out of the chroot."""

    def lose_sys_admin() -> None:
        capabilities.limit({"SYS_CHROOT", "SETPCAP", *capabilities.KEPT})

    with pytest.raises(IsolationError, match=r"would not hold .*--sandbox=none"):
        run(share, listing, prepare=lose_sys_admin, sandbox="chroot")


def without_landlock() -> None:
    vars(landlock)["is_available"] = lambda: False


def test_without_landlock_a_chroot_is_refused(share: Path) -> None:
    with pytest.raises(IsolationError, match=r"needs Landlock .*--sandbox=namespace"):
        run(share, listing, prepare=without_landlock, sandbox="chroot")


def test_without_landlock_none_says_that_it_stops_nobody(share: Path) -> None:
    def says_so(sandbox: Sandbox) -> bool:
        return any("has no Landlock" in note for note in sandbox.notes)

    assert run(share, says_so, prepare=without_landlock, sandbox="none") is True
    assert run(share, says_so, sandbox="none") is False


@pytest.mark.parametrize("uid", [None, NOBODY])
def test_landlock_denies_files_beside_the_share(share: Path, uid: int | None) -> None:
    def probe(sandbox: Sandbox) -> list[str]:
        return [
            attempt(lambda: os.open("/etc/passwd", os.O_RDONLY)),
            attempt(lambda: os.open("../vfsd-new", os.O_CREAT, dir_fd=sandbox.root_fd)),
            attempt(lambda: os.open("hello", os.O_RDWR, dir_fd=sandbox.root_fd)),
        ]

    share.joinpath("hello").chmod(0o666)
    assert run(share, probe, uid=uid, sandbox="none") == ["EACCES", "EACCES", "ok"]


def attempt(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def test_the_supervisor_hears_of_a_failure(new_pool: NewPool) -> None:
    event = new_pool(modcaps="+flying").first_event()
    assert event["event"] == "failed"
    assert "flying" in event["error"]


def test_every_stage_says_what_it_should_and_must_not_do() -> None:
    assert [stage.name for stage in STAGES] == [
        "process", "namespaces", "fork", "score", "root", "handles", "landlock", "fds",
        "capabilities", "seccomp",
    ]  # fmt: skip
    assert all(stage.should and stage.mustnt for stage in STAGES)


# A real pool and its workers, seen from the host.


def namespaces(pid: int | str) -> dict[str, str]:
    names = ("mnt", "pid", "net", "ipc", "uts", "user")
    return {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in names}


@pytest.mark.parametrize("mode", MODES)
def test_privileges_of_pool_and_worker(new_pool: NewPool, mode: str) -> None:
    pool = new_pool(sandbox=mode).start()
    pool.ask("spawn", slot=0)
    processes = pool.processes()
    assert len(processes) == 3
    for pid in processes.values():
        status = pool.status(pid)
        assert status["CapEff"] == status["CapPrm"] == KEPT
        assert int(status["CapBnd"], 16) == int(status["CapAmb"], 16) == 0
        assert status["CapInh"] == "0000000000000000"
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert status["Groups"] == ""
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_seccomp_can_be_left_out(new_pool: NewPool) -> None:
    pool = new_pool(seccomp="none").start()
    assert pool.pid is not None
    status = pool.status(pool.pid)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("0", "1")


def test_capabilities_as_modified(new_pool: NewPool) -> None:
    pool = new_pool(modcaps="-mknod:-setfcap:+sys_ptrace").start()
    assert pool.pid is not None
    expected = 0x880000DB & ~(1 << 27 | 1 << 31) | 1 << 19
    assert int(pool.status(pool.pid)["CapEff"], 16) == expected


@pytest.mark.parametrize("mode", MODES)
def test_namespaces_of_pool_and_worker(new_pool: NewPool, mode: str) -> None:
    pool = new_pool(sandbox=mode).start()
    pool.ask("spawn", slot=0)
    ours = namespaces("self")
    for pid in pool.processes().values():
        theirs = namespaces(pid)
        new = {name for name in ours if theirs[name] != ours[name]}
        assert new == NAMESPACES[mode]


def test_an_ordinary_user_has_a_user_namespace(new_pool: NewPool) -> None:
    pool = new_pool(uid=NOBODY).start()
    pool.ask("spawn", slot=0)
    for pid in pool.processes().values():
        status = pool.status(pid)
        assert namespaces(pid)["user"] != namespaces("self")["user"]
        assert status["Uid"].split() == [str(NOBODY)] * 4
        assert (status["CapEff"], status["Seccomp"], status["NoNewPrivs"]) == (KEPT, "2", "1")
        assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", str(NOBODY), "1"]


def test_only_the_jobs_fds_are_open(new_pool: NewPool) -> None:
    leak = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        pool = new_pool(also_pass=[leak]).start()
    finally:
        os.close(leak)
    kinds = sorted(what.split(":")[0].split(" ")[0] for what in pool.fds().values())
    assert kinds == sorted(
        ["/"] * 2  # the share, /proc
        + [f"/{pool.pid}/oom_score_adj"]
        + ["/memfd"] * 5
        + ["socket"] * 3  # the fd channel, two listeners
        + ["pipe"]  # stderr
        + ["anon_inode"] * 4  # stdin, stdout, two eventfds of the pool
    )


@pytest.mark.parametrize("mode", MODES)
def test_an_fd_of_a_file_system_is_refused(new_pool: NewPool, folder: Path, mode: str) -> None:
    """An operator may have redirected stderr to a log file. The sandbox does not inherit that
    file."""
    with (folder / "log").open("wb") as log:
        event = new_pool(stderr=log.fileno(), sandbox=mode).first_event()
    assert event["event"] == "failed"
    assert "fd 2 refers to the file" in event["error"]
    assert "log" in event["error"]
