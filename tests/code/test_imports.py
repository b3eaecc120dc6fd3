# SPDX-License-Identifier: Apache-2.0
"""The directions in which code may depend on code (DESIGN: folders)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vfsd"

# Package -> the sibling packages it may import or include.
ALLOWED = {
    "transport": {"transport"},
    "worker": {"worker", "transport"},
    "supervisor": {"supervisor", "transport"},
    "frontend": {"frontend", "transport"},
    "bench": {"bench", "frontend", "transport"},
    "control": {"control", "transport"},
    "tool": {"tool", "bench", "control", "frontend", "transport"},
    "virtiofsd.py": {"supervisor"},
}
# The storeys of worker/csrc: folder -> the folders whose headers it may include. An op (fs) sees no
# ring and no thread (loop), the tables know no op, and the files that ask the host's kernel (host)
# include no other storey. The broker of file handles is a process of its own and starts in a
# sandbox of its own.
STOREYS = {
    "loop": {"loop", "fs", "request", "tables", "host"},
    "fs": {"fs", "request", "tables", "broker", "host"},
    "request": {"request", "tables", "host"},
    "tables": {"tables", "host"},
    "broker": {"broker", "host", "sandbox"},
    "host": {"host"},
    "sandbox": {"sandbox"},
}
WORKER_CSRC = PACKAGE / "worker" / "csrc"
# A worker must not import these: each module in a worker must be trusted, and takes memory in each
# worker.
NOT_IN_WORKER = {"argparse", "pathlib", "psutil", "subprocess", "tomllib"}
# Modules that only few starts need are imported by the functions that need them, because a module
# takes memory in every process.
FOR_FEW = {
    "difflib", "inspect", "logging", "psutil", "random", "shutil", "subprocess", "tempfile",
    "tomllib", "traceback",
}  # fmt: skip
# A module outside the standard library -> the only files that may import it.
ONLY_IN = {
    "psutil": {"bench/process_tree.py"},
    "setproctitle": {"transport/process_title.py"},
    "zmq": {"transport/channel.py", "control/client.py"},
    "vfsd._native": {"transport/native.py", "_native_build.py"},
}


BEFORE_LISTENING = {
    "cli", "command_line", "config_file", "listener", "option_values", "options",
    "pid_file", "settings", "signals",
}  # fmt: skip


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def c_files() -> list[Path]:
    return sorted(PACKAGE.glob("*/csrc/**/*.[ch]"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports_follow_the_directions(path: Path) -> None:
    allowed = ALLOWED.get(package_of(path), set())
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "vfsd" and len(parts) > 1 and parts[1] in ALLOWED:
            assert parts[1] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", c_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_c_includes_follow_the_directions(path: Path) -> None:
    for include in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
        assert include.split("/")[0] in ALLOWED[package_of(path)], f"{path} includes {include}"
        assert (PACKAGE / include).is_file(), "includes are written from the package root"


def included(path: Path) -> set[str]:
    """The units of worker/csrc ("loop/ring") that a file of another unit includes."""
    own = path.relative_to(WORKER_CSRC).with_suffix("")
    found = re.findall(r'^#include "worker/csrc/(.*)\.h"', path.read_text(), re.MULTILINE)
    return set(found) - {str(own)}


def worker_c_files() -> list[Path]:
    return [path for path in c_files() if path.is_relative_to(WORKER_CSRC)]


def test_each_file_of_the_worker_is_in_a_storey() -> None:
    assert {str(p.relative_to(WORKER_CSRC).parent) for p in worker_c_files()} == STOREYS.keys()


@pytest.mark.parametrize("path", worker_c_files(), ids=lambda p: str(p.relative_to(WORKER_CSRC)))
def test_no_storey_of_the_worker_includes_one_above(path: Path) -> None:
    wanted = {unit.split("/")[0] for unit in included(path)}
    assert wanted <= STOREYS[path.parent.name]


def test_no_units_of_the_worker_are_in_a_circle() -> None:
    """A unit is a header with its .c file. Units that include no remaining unit are removed until
    no unit is left: a circle would remain."""
    units: dict[str, set[str]] = {}
    for path in worker_c_files():
        units.setdefault(str(path.relative_to(WORKER_CSRC).with_suffix("")), set()).update(
            included(path)
        )
    while free := [unit for unit, below in units.items() if not below & units.keys()]:
        for unit in free:
            del units[unit]
    assert not units, "these units, or what they include, are in a circle"


def test_no_start_imports_what_few_need() -> None:
    loaded = "print(*(n for n, m in sys.modules.items() if getattr(m, '__spec__', None)))"
    start = "import sys; from vfsd import lean_start; lean_start.load_seldom_used_later()"
    code = f"{start}; import vfsd.supervisor.serving, vfsd.worker.pool_start; {loaded}"
    argv = [sys.executable, "-I", "-c", code]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert not set(done.stdout.split()) & FOR_FEW


def test_the_package_replaces_no_module_of_others() -> None:
    """After an import of vfsd, or of any part of it, sys.modules is as the import system made it:
    each module comes from the file that its name stands for."""
    code = """
import importlib, pkgutil, sys, vfsd
for module in pkgutil.walk_packages(vfsd.__path__, "vfsd."):
    importlib.import_module(module.name)
print(*(name for name in ("inspect", "random", "traceback")
        if name in sys.modules and sys.modules[name].__spec__ is None))
"""
    argv = [sys.executable, "-I", "-c", code]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert not done.stdout.split()


def test_a_module_that_is_loaded_later_is_there_when_it_is_used() -> None:
    code = """
import sys
from vfsd import lean_start
lean_start.load_seldom_used_later()
import random
assert random.__spec__ is None
assert 0 <= random.random() < 1
assert sys.modules["random"].__spec__ is not None
"""
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def test_a_socket_listens_before_what_serves_is_imported() -> None:
    """The test counts modules and not time. The import of a module takes about a third of a
    millisecond of CPU."""
    bare, listening = (
        set(
            subprocess.run(
                [sys.executable, "-I", "-c", f"import sys{module}; print(*sys.modules)"],
                check=True, capture_output=True, text=True,
            ).stdout.split()
        )
        for module in ("", ", vfsd.virtiofsd, vfsd.supervisor.cli")
    )  # fmt: skip
    ours = {name.rpartition(".")[2] for name in listening if name.startswith("vfsd.supervisor.")}
    assert ours == BEFORE_LISTENING
    assert not listening & {"vfsd._native", "logging", "json", "setproctitle", "zmq"}
    assert len(listening - bare) <= 60, sorted(listening - bare)


@pytest.mark.parametrize(
    ("module", "is_there"), [("vfsd.supervisor.serving", False), ("vfsd.worker.pool_start", True)]
)
def test_only_the_sandbox_has_libzmq(module: str, is_there: bool) -> None:
    """Outside of the sandbox, the bytes of a worker are parsed by our own code, which is in Python:
    supervisor/worker_link.py."""
    code = f"import sys, {module}; sys.exit(('zmq' in sys.modules) != {is_there})"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0


def test_a_worker_imports_nothing_it_does_not_need() -> None:
    for path in (PACKAGE / "worker").glob("*.py"):
        assert not imported(path) & NOT_IN_WORKER, path


@pytest.mark.parametrize("module", sorted(ONLY_IN))
def test_each_foreign_library_has_one_door(module: str) -> None:
    importers = {
        str(path.relative_to(PACKAGE))
        for path in python_files()
        if any(n == module or n.startswith(module + ".") for n in imported(path))
    }
    assert importers <= ONLY_IN[module]
