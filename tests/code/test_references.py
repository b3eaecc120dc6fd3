# SPDX-License-Identifier: Apache-2.0
"""The files of this repository that comments name are there."""

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = sorted(
    path for suffix in ("py", "c", "h") for path in (ROOT / "vfsd").rglob(f"*.{suffix}")
)
NAMES: Final = {
    path.name for folder in ("vfsd", "tests", "scripts") for path in (ROOT / folder).rglob("*.*")
}
# A word with the suffix of a source. A header of the system is in angle brackets, and a name with
# a capital is an example.
FILE: Final = re.compile(r"(?<![<\w./-])[a-z][\w./-]*\.(?:py|c|h)\b(?!>)")
# Files of Linux, and a file that the build writes.
ELSEWHERE: Final = {
    "fs/fuse/virtio_fs.c", "include/uapi/linux/fuse.h", "linux/landlock.h", "probe.c",
}  # fmt: skip


def text_of(path: Path) -> str:
    """The text without the includes, which the compiler checks, and without imports."""
    return re.sub(r"^\s*(?:#include|import|from) .*", "", path.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_that_a_comment_names_is_there(path: Path) -> None:
    named = set(FILE.findall(text_of(path))) - ELSEWHERE
    assert {name for name in named if name.rpartition("/")[2] not in NAMES} == set()
