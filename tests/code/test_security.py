# SPDX-License-Identifier: Apache-2.0
"""The statements of SECURITY.md about tests and modes are true; test_docs.py checks its tables."""

import re
from pathlib import Path
from typing import Final

import pytest
import security_tables as tables

from tests.hostile import race
from tests.hostile.test_taken_over import ATTEMPTS, MODES
from tests.sandbox_modes import OF_ROOT
from vfsd.worker.isolation import EVERY

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "SECURITY.md").read_text()
NAMED: Final = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", PAGE)))
BYTES_MAX: Final = 25_000


@pytest.mark.parametrize("name", NAMED)
def test_each_test_that_is_named_is_there(name: str) -> None:
    path, _, function = name.partition("::")
    assert not function or f"def {function}(" in (ROOT / path).read_text()
    assert (ROOT / path).is_file()


def test_each_known_error_has_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| CVE-")]
    assert len(rows) >= 5
    assert all("`tests/" in row.rpartition(" | ")[2] for row in rows)


def test_loops_are_counted() -> None:
    text = " ".join(PAGE.split())
    assert f"makes {len(ATTEMPTS) * len(MODES)} attempts in {len(MODES)} modes" in text
    assert f"races in {len(race.settings())} settings" in text


def test_each_class_of_attack_is_tried_in_each_mode_of_root() -> None:
    """An attack that is not tried in each mode has the reason in the table: `alike`."""
    rows = [line for line in PAGE.splitlines() if line.endswith(".py` |") and line.count("|") > 9]
    assert len(rows) == len(tables.ATTACKS)
    for attack, row in zip(tables.ATTACKS, rows, strict=True):
        numbers = dict(zip(tables.COLUMNS, row.split(" | ")[2:], strict=False))
        is_complete = all(numbers[mode] != tables.NONE for mode in OF_ROOT)
        assert is_complete == (attack.alike == ""), (attack.name, numbers)


@pytest.mark.parametrize("mode", [*EVERY, "namespace with `--userns`", "unprivileged"])
def test_each_mode_has_a_paragraph(mode: str) -> None:
    words = re.escape(mode) if "`" in mode else mode
    assert re.search(rf"^\* \*\*{words}\*\*", PAGE, re.MULTILINE)


def test_it_can_be_read_at_a_sitting() -> None:
    made = re.compile(r"<!-- \w+: scripts/docs.py -->.*?<!-- end -->", re.DOTALL)
    assert len(made.sub("", PAGE).encode()) <= BYTES_MAX
