# SPDX-License-Identifier: Apache-2.0
"""Guests that keep their pages read what the file has, as if they dropped them at each OPEN. A run
of seconds; `python -m tests.coherence` runs for as long as wanted."""

from pathlib import Path

import pytest

from tests.conftest import require
from tests.hostile.file_systems import file_system

from .run import WORLDS, run

FILES = 40
SECONDS = 30.0  # files are changed again after 12 seconds


@pytest.mark.parametrize(
    ("kind", "world"),
    [
        ("ext4", "opens"),
        ("ext4", "names"),
        ("xfs", "opens"),
        ("btrfs", "opens"),
        ("tmpfs", "opens"),
    ],
)
def test_no_guest_reads_stale_data(tmp_path: Path, kind: str, world: str) -> None:
    require("/dev/fuse")
    with file_system(kind, tmp_path) as folder:
        outcome = run(folder, WORLDS[world], SECONDS, FILES)
    assert not outcome.wrong
    assert sum(outcome.changes.values()) > FILES
    if kind == "tmpfs":  # nothing is kept: a mapping changes a file without a new ctime
        assert outcome.sent["READ"] >= outcome.opens * 0.9
    else:
        assert outcome.sent["READ"] < outcome.opens * 0.9


def test_the_model_sees_what_a_guest_keeps_for_too_long(tmp_path: Path) -> None:
    require("/dev/fuse")
    with file_system("ext4", tmp_path) as folder:
        outcome = run(folder, WORLDS["opens"], 3.0, FILES, cache="always")
    assert outcome.wrong
