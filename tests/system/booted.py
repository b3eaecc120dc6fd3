# SPDX-License-Identifier: Apache-2.0
"""Boot Debian's systemd in namespaces of its own, to run units as they are shipped.

The systemd sees this machine's files, with folders of its own as /etc, /run, /srv and
/usr/local/sbin. Its processes are in a pid namespace and in a cgroup below ours, of version 2
because systemd's rules about devices need that version. A mount that is unmounted on this machine
is also unmounted in systemd's namespace. The units of this systemd are the targets that a service
waits for, the journal, and the units that add_unit() adds.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from tests.conftest import cannot_run, require
from tests.waiting import HANG, wait_until

SYSTEMD: Final = "/lib/systemd/systemd"
SHIPPED: Final = Path("/lib/systemd/system")
JOURNAL: Final = ("systemd-journald.service", "systemd-journald.socket")
START_SECONDS: Final = 30.0
ROOT: Final = Path(__file__).resolve().parents[2]
UNIT: Final = ROOT / "contrib/systemd/virtiofsd@.service"
PROGRAM: Final = Path(sys.executable).with_name("virtiofsd")
_TARGET: Final = "[Unit]\nDescription={0}\nDefaultDependencies=no\n"
_BOOTED: Final = "Requires=systemd-journald.service\nAfter=systemd-journald.service\n"
_JOURNAL: Final = "[Journal]\nStorage=volatile\nReadKMsg=no\n"
# $1: the folder of Booted. A process in the cgroup runs this script as pid 1 of the new namespaces.
_BOOT: Final = f"""
mount -t proc proc /proc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mount --bind "$1/etc" /etc
mount --bind "$1/srv" /srv
mount --bind "$1/sbin" /usr/local/sbin
exec env -i container=vfsd SYSTEMD_UNIT_PATH="$1/units" {SYSTEMD} --unit=booted.target \
    --log-target=console --show-status=no
"""
_ENTER: Final = (
    'echo $$ >"$1/cgroup.procs"; shift; exec unshare --mount --pid --ipc --uts --cgroup --fork'
    ' --kill-child --propagation slave "$@"'
)


class Booted:
    """A running systemd. `srv` and `etc` are its /srv and /etc; path() finds files in its /run."""

    def __init__(self, folder: Path) -> None:
        for what in ("root", SYSTEMD, "unshare", "nsenter"):
            require(what)
        self.folder = folder
        self.srv, self.etc = folder / "srv", folder / "etc"
        self._units = folder / "units"
        self._make_folders()
        self.cgroup = _make_cgroup()
        self._log = folder / "console"
        with self._log.open("wb") as log:
            boot = ["sh", "-euc", _BOOT, "sh", str(folder)]
            self._parent = subprocess.Popen(
                ["sh", "-euc", _ENTER, "sh", str(self.cgroup), *boot],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self.pid = self._pid_of_systemd()
            wait_until(self._is_running, START_SECONDS)
        except BaseException:
            print(self._log.read_text(errors="replace"))  # shown if the test fails
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_folders(self) -> None:
        for name in ("srv", "sbin", "units"):
            (self.folder / name).mkdir()
        subprocess.run(["cp", "-a", "/etc", self.etc], check=True)
        (self.etc / "machine-id").write_text(f"{os.getpid():032x}\n")
        (self.etc / "systemd/journald.conf").write_text(_JOURNAL)
        for name in ("sysinit", "basic", "shutdown", "booted"):
            text = _TARGET.format(name) + (_BOOTED if name == "booted" else "")
            (self._units / f"{name}.target").write_text(text)
        for name in JOURNAL:
            shutil.copy(SHIPPED / name, self._units)
        self.folder.chmod(0o755)

    def _pid_of_systemd(self) -> int:
        """The pid of the child of `unshare`; waits until the child exists."""
        children = Path(f"/proc/{self._parent.pid}/task/{self._parent.pid}/children")
        wait_until(lambda: bool(children.read_text()), START_SECONDS)
        return int(children.read_text().split()[0])

    def _is_running(self) -> bool:
        return self.run("systemctl", "is-system-running").stdout.strip() == "running"

    def add_unit(self, path: Path) -> None:
        """Add a unit. systemd sees added units after systemctl("daemon-reload")."""
        shutil.copy(path, self._units)

    def add_drop_in(self, unit: str, text: str) -> None:
        """Add lines to the section [Service] of a unit, as `systemctl edit` does."""
        folder = self._units / f"{unit}.d"
        folder.mkdir(exist_ok=True)
        # A drop-in of an instance hides the drop-in of the same file name of its template.
        number = len(list(self._units.glob("*.d/*")))
        (folder / f"{number}.conf").write_text(f"[Service]\n{text}\n")

    def add_program(self, program: Path) -> None:
        """Put a program into the PATH of services."""
        (self.folder / "sbin" / program.name).symlink_to(program)

    def install(self) -> None:
        """Install the programs of this environment with the unit, as it is shipped."""
        self.add_unit(UNIT)
        self.add_program(PROGRAM)
        self.add_program(PROGRAM.with_name("vfsd"))
        # Python's files may be in a home folder on this machine, which the unit hides.
        self.add_drop_in("virtiofsd@.service", f"BindReadOnlyPaths={ROOT} {sys.base_prefix}")
        (self.etc / "vfsd").mkdir(exist_ok=True)

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command beside systemd, in all of its namespaces."""
        ended = self._parent.poll()
        assert ended is None, f"systemd has ended: {ended}\n{self._log.read_text(errors='replace')}"
        enter = ["nsenter", "--target", str(self.pid), "--all"]
        return subprocess.run(
            [*enter, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=HANG, check=False,
        )  # fmt: skip

    def pids(self, unit: str, title: str) -> list[int]:
        """The processes of a service whose command line contains `title`, as pids of this
        namespace."""
        group = self.cgroup / self.show(unit, "ControlGroup").lstrip("/")
        everything = map(int, (group / "cgroup.procs").read_text().split())
        return [pid for pid in everything if title in _command_line(pid)]

    def run_in(self, unit: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in this process's namespaces, but in the cgroup of a service."""
        group = self.cgroup / self.show(unit, "ControlGroup").lstrip("/")
        enter = ["sh", "-euc", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(group)]
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=False)

    def systemctl(self, verb: str, *arguments: str) -> None:
        """Run systemctl; if it fails, raise AssertionError with the journal."""
        done = self.run("systemctl", verb, *arguments)
        assert done.returncode == 0, f"{verb} {arguments}: {done.stderr}\n{self.journal()}"

    def show(self, unit: str, what: str) -> str:
        """The value of a property of a unit; `what` is its name in systemctl(1)."""
        return self.run("systemctl", "show", "--value", f"--property={what}", unit).stdout.strip()

    def journal(self, unit: str = "*") -> str:
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "-o", "cat", f"--unit={unit}").stdout

    def path(self, absolute: str) -> Path:
        """The path in this process's namespace of a file that systemd sees as `absolute`."""
        return Path(f"/proc/{self.pid}/root{absolute}")

    def close(self) -> None:
        """End systemd and all of its services: when pid 1 of a pid namespace dies, the kernel kills
        all processes of that namespace."""
        with suppress(ProcessLookupError):
            self._parent.send_signal(signal.SIGKILL)  # unshare --kill-child then kills systemd
        self._parent.wait(HANG)
        wait_until(lambda: _remove(self.cgroup), START_SECONDS)


def _make_cgroup() -> Path:
    """A new cgroup of version 2 below the cgroup of this process."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = [fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    if not points:
        cannot_run("needs a cgroup2 mount, which this machine lacks")
    rows = Path("/proc/self/cgroup").read_text().splitlines()
    (ours,) = [row.removeprefix("0::") for row in rows if row.startswith("0::")]
    path = Path(points[0] + ours) / f"vfsd-booted-{os.getpid()}-{time.monotonic_ns()}"
    path.mkdir()
    return path


def _remove(cgroup: Path) -> bool:
    """Remove a cgroup with all cgroups below it; False if it still has processes."""
    try:
        for path in sorted(cgroup.rglob("*/"), reverse=True):
            path.rmdir()
        cgroup.rmdir()
    except OSError:
        return False
    return True


def _command_line(pid: int) -> str:
    """Empty if the process has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
