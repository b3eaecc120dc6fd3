# SPDX-License-Identifier: Apache-2.0
"""Races between queues and between VMs, for RACE_SECONDS in all; race.py lists the invariants."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox_modes import SandboxMode

from . import race
from .file_systems import file_system

RACE_SECONDS = float(os.environ.get("VFSD_RACE_SECONDS", "45"))
SETTINGS = race.settings()


@pytest.fixture(scope="module", params=race.FILE_SYSTEMS)
def share(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    with file_system(request.param, tmp_path_factory.mktemp("race")) as mount_point:
        yield mount_point


@pytest.mark.sandbox_modes(*race.TRIED)
@pytest.mark.timeout(900 + RACE_SECONDS)
def test_types_told_match(share: Path, sandbox_mode: SandboxMode, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    ours = [s for s in SETTINGS if (s.kind, s.mode) == (share.name, sandbox_mode)]
    assert ours
    for setting in ours:
        running = race.run(setting, share / setting.folder, tmp_path, RACE_SECONDS / len(SETTINGS))
        assert running.rounds, str(setting)
