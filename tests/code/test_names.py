# SPDX-License-Identifier: Apache-2.0
"""Each name stands for one thing: no two modules or public classes of the package share a name."""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "vfsd"
# File names that Python prescribes for a package: several packages have them.
OF_PYTHON = {"__init__", "__main__"}
FILES = [path for path in PACKAGE.rglob("*.py") if path.stem not in OF_PYTHON]


def twice(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def public_classes(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    return [n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]


def test_each_module_has_a_name_of_its_own() -> None:
    assert not twice([path.stem for path in FILES])


def test_each_public_class_has_a_name_of_its_own() -> None:
    assert not twice([name for path in FILES for name in public_classes(path)])
