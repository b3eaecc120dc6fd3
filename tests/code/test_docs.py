# SPDX-License-Identifier: Apache-2.0
"""The documents agree with the options, protocols and files that exist."""

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import protocol_tables
import pytest

import docs
from vfsd.supervisor.option_help import help_text, spellings
from vfsd.supervisor.options import OPTIONS
from vfsd.tool.commands import COMMANDS

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = (ROOT / "README.md").read_text()
OPERATIONS: Final = (ROOT / "docs/operations.md").read_text()
SECTION: Final = OPERATIONS.partition("\n## Options by topic\n")[2].partition("\n## ")[0]
# Path of a page -> its text.
PAGES: Final = {
    str(path.relative_to(ROOT)): path.read_text()
    for pattern in ("*.md", "docs/*.md", "tests/*.md")
    for path in sorted(ROOT.glob(pattern))
}
LINK: Final = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
FILE: Final = re.compile(r"`([\w./*@-]+\.(?:c|h|py|json))`")
GREP: Final = re.compile(r"git log [^\n]*--grep '([^']+)'")  # the subject of a commit
FEW_COMMITS: Final = 100  # of a shallow clone
SPELLINGS: Final = sorted(name for row in OPTIONS for name, _ in spellings(row))
# A long option in running text. `--migration-*` and "--no-" are not options.
LONG: Final = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w*-])")


def plain(name: str) -> str:
    """The text of a manual page without its markup."""
    text = (ROOT / "contrib/man" / name).read_text()
    return re.sub(r"\\f.", "", text).replace("\\-", "-")


def table() -> list[str]:
    """The rows of the tables of options in docs/operations.md."""
    return [line for line in SECTION.splitlines() if line.startswith("| `-")]


def anchors(page: str) -> set[str]:
    """The anchors of the headings of a page, to which links can lead."""
    heads = re.findall(r"^#+ (.+)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def repository() -> list[str]:
    """The paths of files that a page may name."""
    folders = ("vfsd", "tests", "scripts", "contrib")
    return [str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.*")]


@pytest.mark.parametrize("row", docs.MADE, ids=lambda row: f"{row[0]}, {row[1]}")
def test_what_is_made_from_the_table_is_up_to_date(row: docs.Made) -> None:
    complaint = "run .venv/bin/python scripts/docs.py"
    assert (ROOT / row[0]).read_text() == docs.written(*row), complaint


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_is_everywhere(spelling: str) -> None:
    as_word = re.compile(rf"(?<![\w-]){re.escape(spelling)}(?![\w-])")
    assert as_word.search(help_text())
    assert as_word.search(plain("virtiofsd.1"))
    cells = re.compile(rf"`{re.escape(spelling.removeprefix('-o '))}[`=\[]")
    assert any(cells.search(row) for row in table())


@pytest.mark.parametrize("text", [SECTION, help_text(), plain("virtiofsd.1")], ids=range(3))
def test_no_option_is_written_about_that_there_is_not(text: str) -> None:
    assert set(LONG.findall(text)) - set(SPELLINGS) <= {"--name"}


@pytest.mark.parametrize("syntax", ["flock()", "fcntl()", "guest:G:H:N"])
def test_syntax_at_the_beginning_of_a_sentence_stays_as_it_is_typed(syntax: str) -> None:
    wrong = syntax[0].upper() + syntax[1:]
    for text in (docs.options(), plain("virtiofsd.1")):
        assert syntax in text
        assert wrong not in text


def test_the_tables_have_a_row_for_each_option() -> None:
    assert len(table()) == len(OPTIONS)


def test_the_readme_is_short_and_has_ten_options() -> None:
    assert len(README.encode()) <= 10_000
    found = re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE)
    assert len(found) == 10
    assert set(found) <= set(SPELLINGS)


def test_each_part_of_the_protocols_is_in_one_table() -> None:
    assert protocol_tables.protocol_gaps() == []


def test_a_part_of_the_protocols_in_no_table_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(protocol_tables.OPCODES_NOT_SERVED, 40)
    monkeypatch.setitem(protocol_tables.MESSAGES_NOT_SERVED, 1, ("GET_FEATURES", ""))
    assert protocol_tables.protocol_gaps() == ["message 1", "opcode 40"]


@pytest.mark.parametrize("page", PAGES)
def test_each_link_of_a_page_leads_somewhere(page: str) -> None:
    for name, anchor in LINK.findall(PAGES[page]):
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{name} is not there"
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT)))


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"docs/tools.md"}))  # other projects' files
def test_each_file_that_a_page_names_is_in_the_repository(page: str) -> None:
    files = repository()
    names = set(FILE.findall(PAGES[page]))
    there = {n for n in names if any(fnmatch(f, n) or fnmatch(f, f"*/{n}") for f in files)}
    assert names == there


def test_each_commit_that_a_page_names_is_in_the_history() -> None:
    """A source archive and a shallow clone have no history to look at."""
    subjects = [found for text in PAGES.values() for found in GREP.findall(text)]
    assert subjects
    log = ("git", "-C", str(ROOT), "log", "--format=%s")
    done = subprocess.run(log, capture_output=True, text=True, check=False)
    history = done.stdout.splitlines()
    assert len(history) < FEW_COMMITS or set(subjects) <= set(history)


def test_the_walk_names_the_files_that_have_the_op() -> None:
    """The newcomer's walk in docs/hacking.md names every file that mentions STATX."""
    walk = PAGES["docs/hacking.md"].partition("### A newcomer's walk: STATX\n")[2]
    named = set(FILE.findall(walk.partition("\n## ")[0]))
    having = {
        path.name
        for folder in ("vfsd", "tests")
        for path in (ROOT / folder).rglob("*.[chp]*")
        if path.suffix in (".c", ".h", ".py")
        and re.search(r"\b(?:FUSE_)?STATX\b", path.read_text())
    }
    assert named == having - {Path(__file__).name}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_manual_of_the_tool_has_its_options(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vfsd.tool.commands", command, "--help"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    manual = plain("vfsd.1")
    assert f"vfsd {command}" in manual
    assert set(LONG.findall(done.stdout)) <= set(LONG.findall(manual))


def test_the_manual_of_the_tool_has_no_others() -> None:
    known = {"--version", "--help"}
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "vfsd.tool.commands", command, "--help"],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        known |= set(LONG.findall(done.stdout))
    assert set(LONG.findall(plain("vfsd.1"))) <= known
