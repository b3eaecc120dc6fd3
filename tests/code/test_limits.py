# SPDX-License-Identifier: Apache-2.0
"""No test may depend on an idle machine: the limit of a wait is HANG of tests/waiting.py."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
# A limit in whole seconds. Shorter limits are for events that are expected not to happen.
BOUND = re.compile(
    r"\.(?:wait|settimeout|join)\([1-9]\d*(?:\.0)?\)|[( ]timeout=[1-9]\d*(?:\.0)?[,)]"
)
GIVES_UP = {"hostile_pool.py"}  # as an attacker does


def test_limits_are_against_hanging_alone() -> None:
    found = [
        f"{path.relative_to(TESTS)}: {match[0]}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name not in GIVES_UP
        for match in BOUND.finditer(path.read_text())
    ]
    assert not found
