# SPDX-License-Identifier: Apache-2.0
"""How many files a daemon may have open, and how many it leaves to the rest of the host."""

import os
import resource
from pathlib import Path

import pytest

from tests.sandbox_modes import SandboxMode, in_each_mode
from vfsd.supervisor.file_limit import default_limit

from .daemon import FAKE, Daemon, wait_until

MANY = 1 << 30


@pytest.mark.parametrize(
    ("with_handles", "of_a_process", "of_the_system", "limit"),
    [
        (True, MANY, MANY, 100_000),
        (False, MANY, MANY, 1_000_000),
        (False, 524_288, MANY, 524_288),
        (True, 1024, MANY, 1024),
        (False, MANY, 200_000, 200_000 - 16_384),
        (True, MANY, 110_000, 110_000 - 16_384),
        (True, MANY, 20_000, 10_000),
        (True, MANY, 8_192, 4_096),
    ],
)
def test_the_host_keeps_files_for_others(
    with_handles: bool, of_a_process: int, of_the_system: int, limit: int
) -> None:
    assert default_limit(with_handles, of_a_process, of_the_system) == limit


def _limit(pid: int) -> int:
    """The limit in /proc, because prlimit(2) needs a capability for a process of another user."""
    text = Path(f"/proc/{pid}/limits").read_text()
    return int(text.partition("Max open files")[2].split()[0])


@in_each_mode
def test_every_process_has_the_default_limit(tmp_path: Path, sandbox_mode: SandboxMode) -> None:
    with_fds = sandbox_mode.has_user_namespace or sandbox_mode.name == "none"
    check_limits(tmp_path, sandbox_mode.options, 1_000_000 if with_fds else 100_000)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--inode-file-handles=never",), 1_000_000),
        (("--rlimit-nofile=4321",), 4321),
        (("--rlimit-nofile=0",), resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ],
)
def test_every_process_has_the_limit(tmp_path: Path, options: tuple[str, ...], wanted: int) -> None:
    check_limits(tmp_path, options, wanted)


def check_limits(folder: Path, options: tuple[str, ...], wanted: int) -> None:
    """Every process of a daemon has the limit `wanted`, or a lower limit that the log reports."""
    with Daemon(folder, *options) as daemon:
        wait_until(lambda: daemon.find("launcher"))
        family = [daemon.process_group, *daemon.process_group.children(recursive=True)]
        limits = {_limit(process.pid) for process in family}
        is_lower = "files can be open at a time" in daemon.text()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    system = int(Path("/proc/sys/fs/nr_open").read_text())
    assert len(limits) == 1
    assert limits <= {min(wanted, system), hard}
    assert is_lower == (limits == {hard} and hard < min(wanted, system))


def test_more_than_is_allowed_becomes_what_is_allowed(tmp_path: Path) -> None:
    """microvm.nix always asks for 1048576 files, and in a container the limit is lower."""
    limited = ("prlimit", "--nofile=1000:2000")
    no_more = ("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource")
    program = (*limited, *(no_more if os.geteuid() == 0 else ()), *FAKE)
    with Daemon(tmp_path, "--rlimit-nofile", "1048576", program=program) as daemon:
        assert _limit(daemon.process.pid) == 2000
        assert "warning: only 2000 files can be open at a time, not 1048576" in daemon.text()
