# SPDX-License-Identifier: Apache-2.0
"""No file is too long to be read at once. CONTRIBUTING.md has the limits."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {
    "vfsd": {".c": 480, ".h": 480, ".py": 420},
    "tests": {".c": 520, ".h": 520, ".py": 520},
}
# Longer files, each with the reason why it is not cut.
LONG = {
    "tests/hostile/test_credentials.py": "one daemon, in each sandbox mode, for all of its tests",
    "tests/hostile/test_handle_broker.py": "a stolen channel to the broker, and all it may be for",
    "tests/hostile/test_socket.py": "every message of a front-end, with the same fixtures",
    "tests/native/test_vring.c": "one ring, which the tests share",
}


def too_long() -> dict[str, int]:
    """The files above their limit, and their numbers of lines."""
    lines = {
        path: (len(path.read_text().splitlines()), limit)
        for folder, limits in LIMITS.items()
        for suffix, limit in limits.items()
        for path in (ROOT / folder).rglob(f"*{suffix}")
    }
    return {str(p.relative_to(ROOT)): n for p, (n, limit) in lines.items() if n > limit}


def test_no_file_is_too_long() -> None:
    assert not {name: lines for name, lines in too_long().items() if name not in LONG}


def test_each_exception_is_still_needed() -> None:
    assert not LONG.keys() - too_long().keys()


def test_the_limits_are_those_of_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    said = re.search(r"C files have at most (\d+) lines, Python files (\d+), tests (\d+)", text)
    assert said
    limits = LIMITS["vfsd"][".c"], LIMITS["vfsd"][".py"], LIMITS["tests"][".py"]
    assert tuple(map(int, said.groups())) == limits
