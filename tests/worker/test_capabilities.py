# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import pytest

from tests.worker.pool_process import FS, job_content
from vfsd.transport.job import Job, decode
from vfsd.worker import capabilities
from vfsd.worker.handles import Outcome


def test_the_table_is_these_eight() -> None:
    # Bits: CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, SETGID 6, SETUID 7, MKNOD 27, SETFCAP 31
    assert capabilities.mask(set(capabilities.KEPT)) == 0x880000DB


@pytest.mark.parametrize(("name", "number"), [("chown", 0), ("CAP_SYS_ADMIN", 21), ("BPF", 39)])
def test_numbers(name: str, number: int) -> None:
    assert capabilities.number(name) == number


def test_modcaps_adds_and_removes() -> None:
    kept = set(capabilities.KEPT)
    names = capabilities.modified(kept, "+sys_admin:-mknod:-CAP_setfcap:-sys_boot")
    assert names == kept - {"MKNOD", "SETFCAP"} | {"SYS_ADMIN"}
    assert capabilities.modified(kept, "") == kept


@pytest.mark.parametrize("modcaps", ["+root", "mknod", "+", "-chown:*x"])
def test_nonsense_in_modcaps_is_refused(modcaps: str) -> None:
    with pytest.raises(ValueError, match=r"no capability|neither"):
        capabilities.modified(set(), modcaps)


def job(**fs: Any) -> Job:
    return decode(json.dumps(job_content(fs=FS | fs)).encode())


ALL = set(capabilities.KEPT)
READING = {"DAC_READ_SEARCH", "SETGID", "SETUID"}


@pytest.mark.parametrize(
    ("fs", "outcome", "expected"),
    [
        ({}, Outcome.FDS, ALL),
        ({}, Outcome.SIGNED, ALL),
        ({}, Outcome.PREFER, ALL | {"DAC_READ_SEARCH"}),
        ({}, Outcome.MANDATORY, ALL | {"DAC_READ_SEARCH"}),
        ({"xattr": False}, Outcome.FDS, ALL - {"SETFCAP"}),
        ({"readonly": True}, Outcome.SIGNED, READING),
        ({"readonly": True}, Outcome.PREFER, READING),
        ({"readonly": True, "preserve_noatime": True}, Outcome.FDS, READING | {"FOWNER"}),
    ],
)
def test_only_what_the_options_need_is_kept(
    fs: dict[str, Any], outcome: Outcome, expected: set[str]
) -> None:
    assert capabilities.wanted(job(**fs), outcome) == expected


def test_every_condition_is_of_a_capability_in_the_table() -> None:
    assert capabilities.WHEN.keys() <= capabilities.KEPT.keys() | capabilities.FOR_HANDLES.keys()
