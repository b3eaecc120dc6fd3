# SPDX-License-Identifier: Apache-2.0
"""Each name stands for one thing: no two modules or public classes of the package share a name."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vfsd"
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


# clang-format takes the code for C++ where these are names, and spoils it.
KEYWORDS_OF_CPP = (
    "catch", "class", "delete", "explicit", "export", "friend", "mutable", "namespace", "new",
    "operator", "private", "protected", "public", "template", "this", "throw", "try", "typename",
    "using", "virtual",
)  # fmt: skip
NOT_CODE = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\])*"|^#[^\n]*', re.DOTALL | re.MULTILINE)


def test_no_name_in_c_is_a_keyword_of_cpp() -> None:
    keyword = re.compile(rf"\b(?:{'|'.join(KEYWORDS_OF_CPP)})\b")
    files = [path for folder in ("vfsd", "tests") for path in (ROOT / folder).rglob("*.[ch]")]
    found = {
        str(path.relative_to(ROOT)): names
        for path in files
        if (names := keyword.findall(NOT_CODE.sub("", path.read_text())))
    }
    assert found == {}
