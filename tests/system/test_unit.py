# SPDX-License-Identifier: Apache-2.0
"""contrib/systemd/virtiofsd@.service as it is shipped: its security rating, and work in a share
that it serves."""

import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import cannot_run, require
from tests.hostile.driver import GET_FEATURES, Frontend
from tests.hostile.fuse import Guest
from tests.hostile.injector import AT_FDCWD, Injector, error_name
from tests.waiting import wait_until
from vfsd.supervisor.confinement import CALLS
from vfsd.worker import capabilities, seccomp

from .booted import PROGRAM, UNIT, Booted
from .mounted import Mounted, run

EXPOSURE_MAX: Final = 3.0
# System calls of the daemon that the unit's filter refuses, and why the refusal does no harm.
REFUSED: Final = {
    "sched_setaffinity": "only --queue-cpus needs it, and the unit says which line allows it",
    "sched_setscheduler": "the worker's own filter answers it, so the kernel does not run it",
}
OPTIONS: Final = {
    "namespace": "",
    "userns": "userns = true",
    "userns, other ids": 'uid-map = [":0:100000:65536:"]\ngid-map = [":0:100000:65536:"]',
    "chroot": 'sandbox = "chroot"',
    "none": 'sandbox = "none"',
}
FOR_USERNS: Final = "RestrictNamespaces=user"
NO_DEVICES: Final = ("userns", "userns, other ids")
LOCKS_AND_XATTRS: Final = "xattr = true\nflock = true\nposix-lock = true"
# /dev/fuse: every kernel with FUSE has its driver, and opening it has no effect.
FUSE_DEVICE: Final = "c 10 229"
NO_DEVICE_RULES: Final = "needs a kernel with CONFIG_CGROUP_BPF: DevicePolicy= does nothing without"
WORK: Final = """
echo content >file; test "$(cat file)" = content
mkdir folder; ln file folder/link; mv folder/link folder/moved; ln -s file symlink
mkfifo fifo; truncate -s 1M file; fallocate -l 2M file
setfattr -n user.name -v value file; getfattr --only-values -n user.name file | grep -qx value
chmod 4755 file; test "$(stat -c %a file)" = 4755
chown 5:6 file; test "$(stat -c %u:%g file)" = 5:6
flock file true
python3 -c 'import fcntl; fcntl.lockf(open("file", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)'
"""
MAKE_DEVICES: Final = f"mknod device {FUSE_DEVICE}; test -c device; mknod disk b 7 0; test -b disk"


# The lines of the unit.


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_systemd_rates_it(tmp_path: Path) -> None:
    unit = tmp_path / "virtiofsd@vm001.service"
    unit.write_text(UNIT.read_text())
    command = ["systemd-analyze", "security", "--offline=yes", str(unit)]
    require(command[0])
    rating = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (exposure,) = re.findall(r"Overall exposure level for .*: (\d+\.\d+)", rating)
    assert float(exposure) <= EXPOSURE_MAX, rating


def test_capabilities_are_those_that_are_kept_or_make_a_sandbox() -> None:
    bounding = set(" ".join(settings()["CapabilityBoundingSet"]).split())
    kept = capabilities.KEPT.keys() | capabilities.FOR_HANDLES.keys()
    assert bounding == {f"CAP_{name}" for name in kept | {"SYS_ADMIN", "SYS_CHROOT", "SETPCAP"}}


def members(group: str) -> set[str]:
    """The system calls of a systemd filter group; a group may contain other groups."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    ).stdout
    words = [line.strip() for line in listed.splitlines()[1:] if not line.strip().startswith("#")]
    return set().union(*(members(word) if word[:1] == "@" else {word} for word in words if word))


def allowed_calls() -> set[str]:
    allowed: set[str] = set()
    for line in settings()["SystemCallFilter"]:
        names = line.removeprefix("~").split()
        listed = set().union(*(members(n) if n[0] == "@" else {n} for n in names))
        allowed = allowed - listed if line[0] == "~" else allowed | listed
    return allowed


def test_every_call_of_the_daemon_is_allowed() -> None:
    require("systemd-analyze")
    ours = {row.name for row in seccomp.table()} | {c.name for c in CALLS}
    assert ours - allowed_calls() == REFUSED.keys()


# A running service.


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    with Booted(tmp_path_factory.mktemp("booted")) as system:
        system.install()
        yield system


def configure(booted: Booted, name: str, share: Path, options: str) -> None:
    text = f'shared-dir = "{share}"\n{LOCKS_AND_XATTRS}\n{options}\n'
    (booted.etc / f"vfsd/{name}.toml").write_text(text)


@contextmanager
def mounted(booted: Booted, name: str, folder: Path) -> Iterator[Path]:
    socket = booted.path(f"/run/vfsd/{name}/sock")
    with Mounted(folder, str(socket), "--queues=2") as mount:
        yield mount.path
        assert mount.unmount() == 0


@contextmanager
def started(booted: Booted, name: str, options: str = "") -> Iterator[str]:
    """Start a service that shares /srv/NAME; yields the name of its unit."""
    unit = f"virtiofsd@{name}.service"
    (booted.srv / name).mkdir(exist_ok=True)
    (booted.srv / name).chmod(0o777)  # the service's root may have other ids on the host
    configure(booted, name, Path("/srv", name), options)
    booted.systemctl("start", unit)
    try:
        yield unit
        booted.systemctl("stop", unit)
        assert booted.show(unit, "Result") == "success"
        assert not booted.path(f"/run/vfsd/{name}").exists()
    finally:
        booted.run("systemctl", "kill", "--signal=KILL", unit)


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: f"sandbox={kind}")
def test_work_is_done_in_a_share(booted: Booted, kind: str, tmp_path: Path) -> None:
    name = re.sub(r"\W+", "-", kind)
    if kind in NO_DEVICES:
        assert FOR_USERNS in UNIT.read_text()
        booted.add_drop_in(f"virtiofsd@{name}.service", FOR_USERNS)
        booted.systemctl("daemon-reload")
    with started(booted, name, OPTIONS[kind]) as unit:
        for attempt in ("first", "again"):
            (tmp_path / attempt).mkdir()
            with mounted(booted, name, tmp_path / attempt) as path:
                (booted.srv / name / attempt).mkdir(mode=0o777)
                (booted.srv / name / attempt).chmod(0o777)
                run(WORK, path / attempt)
                run(f"! ({MAKE_DEVICES})" if kind in NO_DEVICES else MAKE_DEVICES, path / attempt)
            booted.systemctl("restart", unit)
        assert "Traceback" not in booted.journal(unit)


def test_a_long_name_and_a_program_in_another_folder(booted: Booted, tmp_path: Path) -> None:
    name = "x" * 100
    unit = f"virtiofsd@{name}.service"
    booted.add_drop_in(unit, f"ExecSearchPath=\nExecSearchPath={PROGRAM.parent}")
    booted.systemctl("daemon-reload")
    with started(booted, name), mounted(booted, name, tmp_path) as path:
        run("echo content >file", path)


@pytest.mark.parametrize("folder", ["usr/libexec", "opt/vfsd/bin"])
def test_the_program_is_found_where_packages_put_it(folder: str) -> None:
    searched = ":".join(settings()["ExecSearchPath"]).split(":")
    assert f"/{folder}" in searched


def test_the_keeper_is_the_main_process(booted: Booted) -> None:
    with started(booted, "ready") as unit:
        assert booted.show(unit, "ActiveState") == "active"
        wait_until(lambda: "Waiting for vhost-user" in booted.journal(unit))
        keeper = booted.show(unit, "MainPID")
        title = booted.run("cat", f"/proc/{keeper}/cmdline").stdout
        assert title.startswith("vfsd: ready keeper")


def test_the_service_outlives_its_main_process(booted: Booted, tmp_path: Path) -> None:
    name, unit = "outlives", "virtiofsd@outlives.service"
    (booted.srv / name).mkdir(exist_ok=True)
    configure(booted, name, Path("/srv", name), "")
    booted.systemctl("start", unit)
    try:
        with mounted(booted, name, tmp_path) as path:
            for role in ("keeper", "supervisor", "keeper", "supervisor"):
                _replaced(booted, unit, role)
                run("echo content >file && cat file", path)
        assert booted.show(unit, "ActiveState") == "active"
        title = booted.run("cat", f"/proc/{booted.show(unit, 'MainPID')}/cmdline").stdout
        assert title.startswith("vfsd: outlives keeper")
        family = [Path(f"/proc/{pid}") for pid in booted.pids(unit, "vfsd: outlives")]
        booted.systemctl("stop", unit)
        wait_until(lambda: not any(process.exists() for process in family))
        assert not booted.path(f"/run/vfsd/{name}").exists()
    finally:
        booted.run("systemctl", "kill", "--signal=KILL", unit)


def _replaced(booted: Booted, unit: str, role: str) -> None:
    """Kill the keeper or supervisor of a service, and wait until there is another."""
    (old,), main = booted.pids(unit, role), booted.show(unit, "MainPID")
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: booted.pids(unit, role) not in ([], [old]))
    if role == "keeper":
        wait_until(lambda: booted.show(unit, "MainPID") not in ("0", main))


def test_a_vm_goes_on_when_the_service_is_killed_or_restarted(booted: Booted) -> None:
    with (
        started(booted, "kept") as unit,
        Frontend(str(booted.path("/run/vfsd/kept/sock"))) as frontend,
    ):
        frontend.setup(2)
        for ended_by in (["kill", "--signal=KILL"], ["restart"], ["kill", "--signal=KILL"]):
            before = booted.show(unit, "MainPID")
            booted.systemctl(*ended_by, unit)
            wait_until(lambda: booted.show(unit, "MainPID") not in (before, "0"))  # noqa: B023
            wait_until(lambda: booted.show(unit, "ActiveState") == "active")
            frontend.send(GET_FEATURES)
            assert frontend.receive().number == GET_FEATURES
        stored = int(booted.show(unit, "NFileDescriptorStore"))
    assert stored > 2
    wait_until(lambda: booted.show(unit, "NFileDescriptorStore") == "0")


def test_a_reload_upgrades_the_service(booted: Booted, tmp_path: Path) -> None:
    name, unit = "reloaded", "virtiofsd@reloaded.service"
    (booted.srv / name).mkdir(exist_ok=True)
    configure(booted, name, Path("/srv", name), "")
    booted.systemctl("start", unit)
    try:
        with mounted(booted, name, tmp_path) as path:
            run("echo content >file", path)
            with (path / "file").open() as file:
                run("rm file", path)
                _reload(booted, name, "readonly = true")
                assert os.pread(file.fileno(), 99, 0) == b"content\n"
                with pytest.raises(OSError, match="Read-only file system"):
                    (path / "other").touch()
                _reload(booted, name, "")
                assert os.pread(file.fileno(), 99, 0) == b"content\n"
            run("echo content >file && cat file", path)
        booted.systemctl("stop", unit)
        assert not booted.path(f"/run/vfsd/{name}").exists()
    finally:
        booted.run("systemctl", "kill", "--signal=KILL", unit)


def _reload(booted: Booted, name: str, options: str) -> None:
    """Change the options of a service and reload it."""
    unit = f"virtiofsd@{name}.service"
    before = booted.show(unit, "MainPID")
    configure(booted, name, Path("/srv", name), options)
    booted.systemctl("reload", unit)
    wait_until(lambda: booted.show(unit, "MainPID") not in (before, "0"))
    assert booted.show(unit, "ActiveState") == "active"


def test_a_device_of_the_guest_is_not_opened_in_the_service(booted: Booted, tmp_path: Path) -> None:
    """Even a process of the service that is in no sandbox cannot open it."""
    device = tmp_path / "device"
    with started(booted, "device") as unit:
        done = booted.run_in(unit, "mknod", str(device), *FUSE_DEVICE.split())
        assert done.returncode == 0, "the guest makes devices"
        if not has_device_rules():
            cannot_run(NO_DEVICE_RULES)
        done = booted.run_in(unit, "head", "-c0", str(device))
        assert "Operation not permitted" in done.stderr


def has_device_rules() -> bool:
    """Does this kernel ask the BPF programs of a cgroup whether a device may be opened?"""
    return "__cgroup_bpf_check_dev_permission" in Path("/proc/kallsyms").read_text()


LINES_FOR: Final = {
    'queue-cpus = "0"': "SystemCallFilter=sched_setaffinity",
    'seccomp = "none"': "SystemCallFilter=@resources",
}


@pytest.mark.parametrize("option", LINES_FOR)
def test_an_option_that_needs_a_line(booted: Booted, option: str, tmp_path: Path) -> None:
    """The unit's comments give the line for each option that needs more system calls."""
    assert LINES_FOR[option] in UNIT.read_text()
    name = option.partition(" ")[0]
    booted.add_drop_in(f"virtiofsd@{name}.service", LINES_FOR[option])
    booted.systemctl("daemon-reload")
    with started(booted, name, option) as unit:
        with mounted(booted, name, tmp_path) as path:
            run("echo content >file", path)
        assert "cannot run on CPU" not in booted.journal(unit)


@pytest.mark.parametrize("parent", ["/home", "/root", "/opt"])
def test_a_share_elsewhere_needs_one_line(booted: Booted, parent: str, tmp_path: Path) -> None:
    """The comment at the head of the unit gives that line."""
    name = f"in-{parent[1:]}"
    unit = f"virtiofsd@{name}.service"
    folder = Path(parent, f"vfsd-{tmp_path.name}")
    booted.run("mkdir", "-p", str(folder / "share"))
    booted.run("touch", str(folder / "other"))
    try:
        configure(booted, name, folder / "share", "")
        if parent == "/opt":  # ProtectSystem=strict: the share can be read, not written
            booted.systemctl("start", unit)
            assert "is mounted read-only" in booted.journal(unit)
            booted.systemctl("stop", unit)
        else:
            assert booted.run("systemctl", "start", unit).returncode
            assert "does not exist" in booted.journal(unit)
            booted.run("systemctl", "stop", unit)
        booted.add_drop_in(unit, f"BindPaths={folder}/share")
        booted.systemctl("daemon-reload")
        booted.systemctl("start", unit)
        with mounted(booted, name, tmp_path) as path:
            run("echo content >file", path)
        assert (folder / "share/file").read_text() == "content\n"
        booted.systemctl("stop", unit)
    finally:
        booted.run("systemctl", "kill", "--signal=KILL", unit)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_a_worker_that_was_taken_over_without_a_sandbox(booted: Booted) -> None:
    """The unit refuses accesses that --sandbox=none allows (tests/hostile/test_taken_over.py)."""
    if not has_device_rules():
        cannot_run(NO_DEVICE_RULES)
    device = "/srv/taken/device"
    attempts: dict[str, tuple[Any, ...]] = {
        "mode of a file of the host": ("fchmodat", AT_FDCWD, "/etc/hostname", 0o666),
        "owner of a file of the host": ("fchownat", AT_FDCWD, "/etc/hostname", 1, 1, 0),
        "mode of the device": ("fchmodat", AT_FDCWD, device, 0o600),
        "open the device": ("openat", AT_FDCWD, device, os.O_RDWR),
        "make a device": ("mknodat", AT_FDCWD, f"{device}2", stat.S_IFBLK | 0o600, 7 << 8),
        "open another device": ("openat", AT_FDCWD, f"{device}2", os.O_RDONLY),
    }
    with started(booted, "taken", 'sandbox = "none"') as unit:
        subprocess.run(["mknod", booted.srv / "taken/device", *FUSE_DEVICE.split()], check=True)
        with Frontend(str(booted.path("/run/vfsd/taken/sock"))) as frontend:
            Guest(frontend.setup(1)).init()
            (pid,) = booted.pids(unit, "worker 0")
            with Injector(pid) as worker:
                outcomes = {name: error_name(worker.call(*attempts[name])) for name in attempts}
    assert outcomes == {
        "mode of a file of the host": "EROFS",
        "owner of a file of the host": "EROFS",
        "mode of the device": "ok",
        "open the device": "EPERM",
        "make a device": "ok",
        "open another device": "EPERM",
    }


def test_what_is_in_force(booted: Booted) -> None:
    """The launcher is looked at, because only the unit takes privileges away from it."""
    with started(booted, "force") as unit:
        wait_until(lambda: "Waiting for vhost-user" in booted.journal(unit))
        (launcher,) = booted.pids(unit, "launcher")
        text = Path(f"/proc/{launcher}/status").read_text()
        status = dict(line.split(":\t", 1) for line in text.splitlines())
        kept = capabilities.KEPT.keys() | capabilities.FOR_HANDLES.keys()
        names = {*kept, "SYS_ADMIN", "SYS_CHROOT", "SETPCAP"}
        assert int(status["CapBnd"], 16) == capabilities.mask(names)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        with Injector(launcher) as process:
            attempts: dict[str, tuple[Any, ...]] = {
                "EROFS": ("openat", AT_FDCWD, "/etc/new", os.O_WRONLY | os.O_CREAT, 0o600),
                "ENOENT": ("openat", AT_FDCWD, "/home/user", os.O_RDONLY),
                "EAFNOSUPPORT": ("socket", socket.AF_INET, socket.SOCK_STREAM, 0),
                "EPERM": ("bpf", 0, None, 0),
            }
            assert {e: error_name(process.call(*attempts[e])) for e in attempts} == {
                e: e for e in attempts
            }
