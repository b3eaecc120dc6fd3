# SPDX-License-Identifier: Apache-2.0
"""The number by which a daemon sees that another version has left its tables (--keep-state)."""

import shutil
from pathlib import Path

import pytest

from vfsd._native_build import ROOT, tables_layout
from vfsd.transport.native import lib

OPEN_FILE = "worker/csrc/tables/file_table.h"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for part in ("transport", "worker"):
        shutil.copytree(ROOT / part / "csrc", tmp_path / part / "csrc")
    return tmp_path


def change(copy: Path, path: str, old: str, new: str) -> None:
    text = (copy / path).read_text()
    assert old in text
    (copy / path).write_text(text.replace(old, new, 1))


def test_the_extension_has_the_number_of_its_sources(copy: Path) -> None:
    assert lib.VFSD_TABLES_LAYOUT == tables_layout() == tables_layout(copy)


def test_comments_and_functions_change_nothing(copy: Path) -> None:
    change(
        copy, OPEN_FILE, "struct open_file {", "/* files */\nstruct  open_file\t{ /* of a guest */"
    )
    change(
        copy,
        "worker/csrc/tables/file_table.c",
        "return &t->files[slot];",
        "return t->files + slot;",
    )
    assert tables_layout(copy) == tables_layout()


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (OPEN_FILE, "uint64_t nodeid;", "uint64_t nodeid, later;"),
        (OPEN_FILE, "FILE_WRITABLE = 32", "FILE_WRITABLE = 31"),
        ("worker/csrc/tables/inode.h", "struct inode {", "struct inode {\n\tuint32_t later;"),
        ("worker/csrc/loop/records.h", "pad[15]", "pad[7]"),
        ("transport/csrc/inflight.h", "struct inflight_desc {", "struct inflight_desc {\n\tint a;"),
    ],
)
def test_another_type_is_another_layout(copy: Path, path: str, old: str, new: str) -> None:
    change(copy, path, old, new)
    assert tables_layout(copy) != tables_layout()
