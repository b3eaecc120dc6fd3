# SPDX-License-Identifier: Apache-2.0
"""The sdist has the files of the repository, and the wheel that is built from the sdist has the
files that are needed to run, and no others.

The tests download nothing. The build uses the setuptools and cffi of the tests. The fresh
environment sees the libraries of the tests through a .pth file, but not the package in this tree.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

import vfsd

ROOT: Final = Path(__file__).resolve().parents[2]
NAME: Final = f"vfsd-{vfsd.__version__}"
MADE: Final = ("PKG-INFO", "setup.cfg", "vfsd.egg-info/")  # files that setuptools adds to an sdist
LEFT_OVER: Final = ("vfsd/_native.pyi", "vfsd/_native.abi3.so", "vfsd/worker/left_over.o")
DATA: Final = {
    "share/man/man1/vfsd.1",
    "share/man/man1/virtiofsd.1",
    "share/bash-completion/completions/vfsd",
    "share/bash-completion/completions/virtiofsd",
    "share/zsh/site-functions/_vfsd",
    "share/fish/vendor_completions.d/vfsd.fish",
    "lib/systemd/system/virtiofsd@.service",
}

pytestmark = pytest.mark.timeout(900)  # compiles the extension with its release options


@dataclass(frozen=True)
class Built:
    """The sdist and the wheel of a copy of the repository, which is in `tree`."""

    tree: Path
    repository: set[str]

    @property
    def modules(self) -> set[str]:
        """The Python files that are installed."""
        code = {n for n in self.repository if n.startswith("vfsd/") and n.endswith(".py")}
        return code - {"vfsd/_native_build.py"}

    sdist: set[str]
    wheel: Path


def run(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repository() -> set[str]:
    """The files of the repository. In an unpacked sdist: its files without those of setuptools."""
    if (ROOT / ".git").exists():
        names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
        return {name for name in names if name and (ROOT / name).is_file()}
    with (ROOT / "vfsd.egg-info/SOURCES.txt").open() as sources:
        names = sources.read().splitlines()
    return {name for name in names if not name.startswith(MADE)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An sdist of a tree in which an earlier build has left files, and the wheel of that sdist."""
    folder = tmp_path_factory.mktemp("packages")
    tree, names = folder / "tree", repository()
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    for name in LEFT_OVER:
        (tree / name).write_text("")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, folder, cwd=tree)
    with tarfile.open(folder / f"{NAME}.tar.gz") as archive:
        archive.extractall(folder / "empty", filter="data")
    source = folder / "empty" / NAME
    sdist = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--check-build-dependencies")
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, source, cwd=folder)
    return Built(tree, names, sdist, next(folder.glob("*.whl")))


def test_an_sdist_is_the_repository(built: Built) -> None:
    assert {name for name in built.sdist if not name.startswith(MADE)} == built.repository


def test_a_wheel_holds_what_runs_and_no_more(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    data = {f"{NAME}.data/data/{name}" for name in DATA}
    about = {name for name in names if name.startswith(f"{NAME}.dist-info/")}
    assert names == built.modules | {"vfsd/_native.abi3.so"} | data | about
    assert f"{NAME}.dist-info/licenses/LICENSE" in about
    assert re.search(r"-cp311-abi3-linux_", built.wheel.name)


def test_what_an_earlier_build_has_left_is_not_installed(built: Built, tmp_path: Path) -> None:
    command = ("build_py", "--build-lib", str(tmp_path))
    run(sys.executable, "-c", "from setuptools import setup; setup()", *command, cwd=built.tree)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == built.modules


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment in which the wheel is installed."""
    prefix = tmp_path_factory.mktemp("environment")
    venv.create(prefix, symlinks=True)
    python = prefix / "bin/python"
    libraries = next((prefix / "lib").glob("python3*/site-packages"))
    (libraries / "of_the_tests.pth").write_text(sysconfig.get_path("platlib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps")
    run(*pip, "--ignore-installed", built.wheel, cwd=prefix)
    return prefix


def test_an_installed_wheel_says_its_version(installed: Path) -> None:
    version = vfsd.__version__
    where = run(installed / "bin/python", "-Ic", "import vfsd; print(vfsd.__file__)", cwd=installed)
    assert where.startswith(str(installed))
    said = run(installed / "bin/virtiofsd", "--version", cwd=installed)
    assert said == f"virtiofsd {version} (vfsd)\n"
    assert run(installed / "bin/vfsd", "--version", cwd=installed) == f"vfsd {version}\n"
    assert all((installed / name).is_file() for name in DATA)


def test_an_installed_wheel_serves(installed: Path, tmp_path: Path, requires: Any) -> None:
    requires("root")
    requires("/dev/fuse")
    source, mounted = tmp_path / "source", tmp_path / "mounted"
    source.mkdir()
    mounted.mkdir()
    (source / "file").write_text("served")
    argv: list[str | Path] = [installed / "bin/vfsd", "mount", "--source", source, mounted]
    environment = {**os.environ, "PATH": f"{installed / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as mount:
        assert mount.stdout
        assert mount.stdout.readline(), "nothing was mounted"
        content = (mounted / "file").read_text()
        run("umount", mounted, cwd=tmp_path)
    assert (content, mount.returncode) == ("served", 0)


def test_the_newest_part_of_the_change_log_is_about_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] in (vfsd.__version__, "Unreleased")
