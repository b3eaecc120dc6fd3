# SPDX-License-Identifier: Apache-2.0
"""Formatting, lint, types and spelling are checked like everything else, by tests."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from vfsd._native_build import WARNINGS

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ("vfsd", "tests", "scripts/guest", "scripts/docs.py")
C_FILES = sorted(
    str(p.relative_to(ROOT))
    for pattern in ("vfsd/*/csrc/**/*.[ch]", "tests/native/*.[ch]", "tests/fuzz/*.[ch]")
    for p in ROOT.glob(pattern)
)

SHELL_FILES = sorted(
    str(p.relative_to(ROOT))
    for pattern in ("scripts/*", ".ci/*")
    for p in ROOT.glob(pattern)
    if p.is_file() and p.read_text().startswith(("#!/usr/bin/env bash", "#!/bin/sh"))
)
TEXTS = ("vfsd", "tests", "scripts", "docs", "contrib", "pyproject.toml", *ROOT.glob("*.md"))

INCLUDES = ("-Ivfsd", "-I", sysconfig.get_path("include"))
OURS = r"vfsd/.*[.]c$"
GCC = ("gcc", "-std=gnu11", "-O2", "-D_GNU_SOURCE", "-fsyntax-only", "-Werror")
# Not for the build, because the code that cffi generates casts const away.
OUR_WARNINGS = ("-Wcast-qual",)

LINTERS = {
    "ruff-format": [sys.executable, "-m", "ruff", "format", "--check", *PYTHON],
    "ruff-check": [sys.executable, "-m", "ruff", "check", *PYTHON],
    "mypy": [sys.executable, "-m", "mypy", *PYTHON],
    "codespell": [sys.executable, "-m", "codespell_lib", *map(str, TEXTS)],
    "shellcheck": ["shellcheck", *SHELL_FILES],
    "gcc": [*GCC, *WARNINGS, *OUR_WARNINGS, *INCLUDES, *filter(re.compile(OURS).match, C_FILES)],
    "clang-format": ["clang-format", "--dry-run", "-Werror", *C_FILES],
}


@pytest.mark.parametrize("linter", sorted(LINTERS))
def test_linter_has_nothing_to_say(linter: str) -> None:
    done = subprocess.run(LINTERS[linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
