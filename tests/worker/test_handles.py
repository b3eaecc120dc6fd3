# SPDX-License-Identifier: Apache-2.0
"""The outcome of --inode-file-handles, and which files handles of a file system can reach."""

import json
from typing import Any, Final

import pytest

from tests.worker.pool_process import FS, job_content
from vfsd.transport.job import Job, decode
from vfsd.worker.handles import NoHandlesError, Outcome, Reach, decide, may_use, reach

WHOLE: Final = Reach("ext4 of /dev/vdb", "")
PART: Final = Reach("ext4 of /dev/vda", "all that is beside the share on it")


def job(asked: str, **changes: Any) -> Job:
    fs = FS | {"inode_file_handles": asked}
    return decode(json.dumps(job_content(fs=fs, **changes)).encode())


# Option, what handles reach, whether handles can be opened -> outcome, whether it is a hazard.
DECISIONS: Final = [
    ("auto", WHOLE, True, Outcome.PREFER, False),
    ("auto", PART, True, Outcome.SIGNED, False),
    ("auto", WHOLE, False, Outcome.FDS, False),
    ("auto", PART, False, Outcome.FDS, False),
    ("never", WHOLE, True, Outcome.FDS, False),
    ("never", PART, False, Outcome.FDS, False),
    ("signed", WHOLE, True, Outcome.SIGNED, False),
    ("signed", PART, True, Outcome.SIGNED, False),
    ("signed", PART, False, Outcome.FDS, True),
    ("prefer", WHOLE, True, Outcome.PREFER, False),
    ("prefer", PART, True, Outcome.PREFER, True),
    ("prefer", PART, False, Outcome.FDS, True),
    ("mandatory", WHOLE, True, Outcome.MANDATORY, False),
    ("mandatory", PART, True, Outcome.MANDATORY, True),
]


@pytest.mark.parametrize(("asked", "found", "can_open", "outcome", "is_hazard"), DECISIONS)
def test_the_decision(
    asked: str, found: Reach, can_open: bool, outcome: Outcome, is_hazard: bool
) -> None:
    held = decide(job(asked), found, can_open)
    assert (held.outcome, held.is_hazard) == (outcome, is_hazard)
    assert held.line
    assert "\n" not in held.line


@pytest.mark.parametrize("asked", ["auto", "signed", "prefer"])
def test_a_user_namespace_has_none(asked: str) -> None:
    alone = job(asked, userns=True)
    assert not may_use(alone)
    assert decide(alone, WHOLE, True).outcome is Outcome.FDS


def test_without_a_sandbox_only_by_name() -> None:
    """Landlock's rules, the only protection of the host's files in that mode, are about files and
    not about handles: they do not stop a process that opens handles."""
    assert decide(job("auto", sandbox="none"), WHOLE, True).outcome is Outcome.FDS
    assert decide(job("signed", sandbox="none"), WHOLE, True).outcome is Outcome.SIGNED
    assert decide(job("prefer", sandbox="none"), PART, True).outcome is Outcome.PREFER


def test_who_insists_gets_them_or_an_error() -> None:
    with pytest.raises(NoHandlesError, match="CAP_DAC_READ_SEARCH"):
        decide(job("mandatory"), WHOLE, False)
    with pytest.raises(NoHandlesError):
        decide(job("mandatory", userns=True), WHOLE, True)


def test_the_hazard_names_the_file_system_and_the_way_out() -> None:
    line = decide(job("prefer"), PART, True).line
    assert PART.file_system in line
    assert PART.beyond in line
    assert "--inode-file-handles=signed" in line


def mountinfo(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


ROOT_OF_EXT4: Final = "40 20 254:1 / / rw,relatime master:1 - ext4 /dev/vdb rw"


@pytest.mark.parametrize(
    ("rows", "is_mount_root", "beyond"),
    [
        ([ROOT_OF_EXT4], True, ""),
        ([ROOT_OF_EXT4], False, "beside the share"),
        (["40 20 254:1 /srv/x / rw - ext4 /dev/vdb rw"], True, "beside the share"),
        (["40 20 0:31 /@home / rw - btrfs /dev/vdb rw,subvol=/@home"], True, "beside the share"),
        (["40 20 0:31 / / rw - btrfs /dev/vdb rw,subvol=/"], True, ""),
        (["40 20 0:40 / / rw - tmpfs share rw"], True, ""),
        (["40 20 0:40 / / rw - overlay overlay rw,lowerdir=/a"], True, "this kind"),
        (["40 20 0:40 / / rw - nfs4 server:/x rw"], True, "this kind"),
        (["40 20 0:40 / / rw - fuse.sshfs host: rw"], True, "this kind"),
        ([ROOT_OF_EXT4, "41 40 0:50 / /sub rw - tmpfs tmpfs rw"], True, "cover"),
        ([ROOT_OF_EXT4, "41 20 0:50 / /beside rw - tmpfs tmpfs rw"], True, ""),
        (["41 20 0:50 / /other rw - tmpfs tmpfs rw"], True, "whatever"),
        (["nonsense"], True, "whatever"),
        ([], True, "whatever"),
    ],
)
def test_what_handles_reach(rows: list[str], is_mount_root: bool, beyond: str) -> None:
    found = reach(mountinfo(*rows), 40, is_mount_root)
    assert beyond in found.beyond
    assert bool(found.beyond) == bool(beyond)


def test_names_of_mounts_are_the_kernels() -> None:
    """The kernel writes a line break in a name as \\012."""
    row = "40 20 254:1 / /a\\012b rw shared:1 master:2 - xfs /dev/mapper/a\\040b rw"
    assert reach(mountinfo(row), 40, True) == Reach("xfs of /dev/mapper/a\\040b", "")
