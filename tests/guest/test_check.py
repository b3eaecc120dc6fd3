# SPDX-License-Identifier: Apache-2.0
"""The comparison of trees that the demo relies on notices every kind of difference."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from guest.check import CheckError, compare


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """A small tree with a file, an empty folder and a symbolic link, and an exact copy of it."""
    original = tmp_path / "original"
    (original / "folder").mkdir(parents=True)
    (original / "empty").mkdir()
    (original / "folder" / "file").write_bytes(b"content")
    (original / "link").symlink_to("folder/file")
    twin = tmp_path / "twin"
    shutil.copytree(original, twin, symlinks=True)
    return original, twin


def test_a_faithful_copy_passes(trees: tuple[Path, Path]) -> None:
    assert compare(*trees) == 1


def change_a_byte(twin: Path) -> None:
    times = (twin / "folder/file").stat()
    (twin / "folder/file").write_bytes(b"c0ntent")
    os.utime(twin / "folder/file", ns=(times.st_atime_ns, times.st_mtime_ns))


def redirect(twin: Path) -> None:
    (twin / "link").unlink()
    (twin / "link").symlink_to("elsewhere")


CHANGES: dict[str, Callable[[Path], object]] = {
    "byte": change_a_byte,
    "mode": lambda twin: (twin / "folder/file").chmod(0o600),
    "time": lambda twin: os.utime(twin / "folder/file", (1, 1)),
    "missing file": lambda twin: (twin / "folder/file").unlink(),
    "missing folder": lambda twin: (twin / "empty").rmdir(),
    "surplus": lambda twin: (twin / "folder/more").touch(),
    "link": redirect,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_difference_is_noticed(
    trees: tuple[Path, Path], change: Callable[[Path], object]
) -> None:
    original, twin = trees
    change(twin)
    with pytest.raises(CheckError):
        compare(original, twin)


def test_renamed_files_are_expected_under_their_new_names(trees: tuple[Path, Path]) -> None:
    original, twin = trees
    (twin / "folder/file").rename(twin / "folder/file.new")
    assert compare(original, twin, ".new") == 1
    with pytest.raises(CheckError):
        compare(original, twin)
