# SPDX-License-Identifier: Apache-2.0
"""Comments, documents and messages keep to the never-list of CONTRIBUTING.md.

Only what a pattern can find in one line is found here. Each pattern has the wording to use instead.
The table of CONTRIBUTING.md quotes what is not to be written, so its rows are left out, and so are
words between asterisks, and a line that names the never-list.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = {".c", ".h", ".md", ".py", ".pyi", ".service", ".sh", ".socket", ".toml", ".yml"}
FOLDERS = ("vfsd", "tests", "contrib", "docs", "scripts", ".ci")

# What has no noun before it: "who" and "whose" at the beginning of a clause. A question may begin
# with "who", and a clause after a comma with "whose".
_NO_NOUN = (
    r"(?:^|[.;:(\"] ?|, (?!whose)"
    r"|\b(?:and|as|but|by|for|from|if|is|of|or|than|that|to|was|with|when) )"
    r"(?:who|whoever|whose|whom) (?![=+{}]|(?:is|has|may|can|owns|called) [^?]*\?)"
)
_QUOTED = re.compile(r"(?<!\*)\*[a-z ]+\*(?!\*)")

NEVER = {
    "anew": (r"\banew\b", "again"),
    "so many": (r"\bso many\b", "a number, or 'at most N'"),
    "at the most": (r"\bat the most\b", "at most"),
    "meanwhile": (r"\bmeanwhile\b", "by then, or while X happens"),
    "is no X": (
        r"(?<!here )\b(?:is|are|was|were) no (?!longer\b|more\b|less\b|fewer\b)",
        "is not a X",
    ),
    ", too": (r"\w, too\b", "also"),
    "tell": (r"(?<!\.)\b(?:tells?|told|telling)\b(?!\()", "return, report, say or show"),
    "a process is not a person": (r"\b(?:he|him|his|himself|she|her|herself)\b", "the process"),
    "who without a noun": (_NO_NOUN, "the process that, the guest that"),
}


def _texts() -> list[Path]:
    found = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in TEXT or (folder == "scripts" and not path.suffix)
    ]
    return sorted(p for p in [*found, *ROOT.glob("*.md")] if p.is_file() and p != Path(__file__))


def _plain(line: str) -> str:
    """The line without what marks it as a comment, and without words that it only quotes."""
    return _QUOTED.sub("", re.sub(r"^\s*(?:/?\*+ |\*/|#+|//|>|-)?\s*", "", line))


def _quotes(path: Path, line: str) -> bool:
    return "never-list" in line or (path.name == "CONTRIBUTING.md" and line.startswith("|"))


@pytest.mark.parametrize("rule", NEVER)
def test_wording_is_not_on_the_never_list(rule: str) -> None:
    pattern = re.compile(NEVER[rule][0])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _texts()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if not _quotes(path, line) and pattern.search(_plain(line))
    ]
    assert not found, f"write {NEVER[rule][1]!r} instead:\n" + "\n".join(found)
