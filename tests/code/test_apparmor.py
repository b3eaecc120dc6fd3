# SPDX-License-Identifier: Apache-2.0
"""The AppArmor profile: the parser accepts it, and it allows what the daemon needs and no more."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import require
from vfsd.worker import capabilities

PROFILE: Final = Path(__file__).resolve().parents[2] / "contrib/apparmor/virtiofsd"
RULES: Final = re.sub(r"^\s*#.*\n", "", PROFILE.read_text(), flags=re.MULTILINE)
# The features of a kernel with AppArmor, because the kernel that runs the tests may not have it.
FEATURES: Final = "/etc/apparmor.d/abi/3.0"
TO_MAKE_A_SANDBOX: Final = {"SYS_ADMIN", "SYS_CHROOT", "SETPCAP", "SYS_RESOURCE"}


def parse(profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Compile a profile without loading it into the kernel and without use of the cache."""
    parser, features = require("apparmor_parser"), require(FEATURES)
    kernel = [f"--{of}-features={features}" for of in ("policy", "kernel")]
    command = [parser, "-Q", "-K", *kernel, *options, str(profile)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_parser_takes_it_without_a_warning() -> None:
    done = parse(PROFILE, "--warn=all", "--Werror")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_the_parser_refuses_what_is_no_rule(tmp_path: Path) -> None:
    broken = tmp_path / "virtiofsd"
    broken.write_text(PROFILE.read_text().replace("pivot_root,", "pivot_roof,"))
    assert parse(broken).returncode != 0


def test_capabilities_are_those_that_are_kept_or_make_a_sandbox() -> None:
    allowed = {name.upper() for name in re.findall(r"^  capability (\w+),$", RULES, re.MULTILINE)}
    kept = capabilities.KEPT.keys() | capabilities.FOR_HANDLES.keys()
    assert allowed == kept | TO_MAKE_A_SANDBOX
    assert len(re.findall(r"\bcapability\b", RULES)) == len(allowed)


@pytest.mark.parametrize("family", ["inet", "netlink", "packet"])
def test_no_network_but_unix(family: str) -> None:
    assert re.findall(r"^  network (.*),$", RULES, re.MULTILINE) == ["unix"]
    assert family not in RULES


def test_nothing_is_executed_but_python_and_the_programs_of_uidmap() -> None:
    executed = re.findall(r"^  (/\S+) \w*x,$", RULES, re.MULTILINE)
    assert [path.rpartition("/")[2] for path in executed] == [
        "python3{,.[0-9],.[0-9][0-9]}",
        "new{u,g}idmap",
    ]
