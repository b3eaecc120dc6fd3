# SPDX-License-Identifier: Apache-2.0
"""An upgrade between two builds whose tables differ in layout, in both directions."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import OPTIONS, QUEUES
from .daemon import Daemon
from .driver import Frontend
from .fuse import ROOT, Guest, Op, names
from .test_upgrade import finish, start, upgrade

HERE = Path(__file__).parents[2]
OPEN_FILE = "struct open_file {\n"
BUILD_SECONDS = 500


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with another struct open_file, built."""
    tree = tmp_path_factory.mktemp("other")
    shutil.copytree(HERE / "vfsd", tree / "vfsd", ignore=shutil.ignore_patterns("*.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HERE / name, tree)
    header = tree / "vfsd/worker/csrc/tables/file_table.h"
    text = header.read_text()
    assert OPEN_FILE in text
    header.write_text(text.replace(OPEN_FILE, OPEN_FILE + "\tuint64_t later;\n", 1))
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()"]
    subprocess.run(
        [*command, "build_ext", "--inplace"],
        cwd=tree,
        check=True,
        capture_output=True,
        timeout=BUILD_SECONDS,
    )
    return tree


def install(tree: Path, program: Path) -> None:
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(tree)!r})\n"
        "from vfsd.virtiofsd import main\nsys.exit(main())\n"
    )


def test_another_layout_takes_the_session_over(other: Path, tmp_path: Path) -> None:
    program = tmp_path / "virtiofsd"
    install(HERE, program)
    with Daemon(*OPTIONS, program=(sys.executable, str(program))) as daemon:
        frontend = Frontend(daemon.socket).setup(QUEUES)
        guest = Guest(frontend)
        guest.init()
        folder = guest.mkdir(ROOT, b"folder")
        file, fh = guest.create(folder.nodeid, b"file")
        guest.write(file.nodeid, fh, 0, b"data")
        guest.call(Op.UNLINK, folder.nodeid, names(b"file"))
        for tree in (other, HERE, other):
            install(tree, program)
            status, text = finish(start(daemon, "--dry-run"))
            assert status == 0, text
            assert "another layout of the tables" in text
            upgrade(daemon)
            assert guest.read(file.nodeid, fh, 0, 9) == b"data"
            assert guest.lookup(ROOT, b"folder").nodeid == folder.nodeid
        frontend.close()
