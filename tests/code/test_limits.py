# SPDX-License-Identifier: Apache-2.0
"""No test may depend on the machine being idle: what bounds a wait is HANG of tests/waiting.py."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
# Whole seconds: shorter ones are for what is expected not to happen.
BOUND = re.compile(
    r"\.(?:wait|settimeout|join)\([1-9]\d*(?:\.0)?\)|[( ]timeout=[1-9]\d*(?:\.0)?[,)]"
)
GIVES_UP = {"hostile_pool.py"}  # as whoever has taken a worker over does


def test_limits_are_against_hanging_alone() -> None:
    found = [
        f"{path.relative_to(TESTS)}: {match[0]}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name not in GIVES_UP
        for match in BOUND.finditer(path.read_text())
    ]
    assert not found
