# SPDX-License-Identifier: Apache-2.0
"""Comments, documents and messages keep to the never-list of CONTRIBUTING.md.

Only what a pattern can find is found here, in one line or across the break between two lines. Each
pattern has the wording to use instead. The table of CONTRIBUTING.md quotes what is not to be
written, so its rows are left out, and so are words between asterisks, and a line that names the
never-list.
"""

import re
from collections.abc import Iterator
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
# A process, which is a thing: "the worker who".
_THING = (
    r"\b(?:process|program|daemon|kernel|driver|thread|server|client|keeper|supervisor|launcher|holder"
    r"|pool|worker|broker|guard|deputy|guest|front-end|back-end|VMM)(?:e?s)? (?:who|whom)\b"
)
# A comment behind code: it begins as a line of its own would.
_BEHIND_CODE = re.compile(r"\S\s+(?:/\* |# |// )(.*)")

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
    "a process is a thing": (_THING, "that"),
    "that much": (r"\bthat much\b", "the number, or its name"),
    "one without a noun": (r"\bone (?:that|which|who|whose)\b|\banother one\b", "the noun"),
    "such without a noun": (r"\bsuch (?:is|are|was|were|that|which)\b", "the noun"),
    "those who": (r"\bthose (?:who|whose|whom)\b", "the users who, the processes that"),
    "somebody": (r"\b(?:some|every|any)(?:body|one)\b", "the user, the process, each worker"),
    "the subject at the end": (
        r"(?:^|[.:;] )(?-i:Asked|Allowed|Left|Lost|Missing|Needed|Refused) (?:is|are|was|were) ",
        "the subject first",
    ),
}
BREAKS_IT = (
    "a request is dropped; who waits gets EIO",
    "close(fd); /* whoever took it may use it */",
    "The worker who has died is replaced.",
    "The supervisor tells the pool to stop.",
    "When the pool dies, he is created anew.",
    "The ring has so many entries",
    "Up to that much memory is used.",
    "The fd is no directory, too.",
    "At the most 64 queues are served meanwhile.",
    "An inode replaces another one.",
    "A pool takes the place of one that died.",
    "Such are closed.",
    "Those who may connect act as the guest.",
    "Somebody may hold the lock.",
    "Needed is a group.",
    "This takes at the\n * most a second.",
)


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


def _pieces(lines: list[str]) -> Iterator[tuple[int, str, int]]:
    """The texts to search: number of the line, text, and the place that a match must span (0: a
    match may be anywhere)."""
    before = ""
    for number, line in enumerate(lines, 1):
        text = _plain(line)
        yield number, text, 0
        if behind := _BEHIND_CODE.search(line):
            yield number, behind[1], 0
        if before and text:
            yield number, f"{before} {text}", len(before)
        before = text


def _breaks(pattern: re.Pattern[str], lines: list[str]) -> list[int]:
    """The numbers of the lines that have the pattern."""
    return [
        number
        for number, text, within in _pieces(lines)
        if any(not within or m.start() < within < m.end() - 1 for m in pattern.finditer(text))
    ]


@pytest.mark.parametrize("rule", NEVER)
def test_wording_is_not_on_the_never_list(rule: str) -> None:
    pattern = re.compile(NEVER[rule][0], re.IGNORECASE)
    found = []
    for path in _texts():
        lines = path.read_text(errors="replace").splitlines()
        kept = ["" if _quotes(path, line) else line for line in lines]
        found += [
            f"{path.relative_to(ROOT)}:{number}: {lines[number - 1].strip()}"
            for number in _breaks(pattern, kept)
        ]
    assert not found, f"write {NEVER[rule][1]!r} instead:\n" + "\n".join(found)


@pytest.mark.parametrize("sentence", BREAKS_IT)
def test_a_sentence_that_breaks_the_list_is_found(sentence: str) -> None:
    lines = sentence.splitlines()
    assert any(_breaks(re.compile(pattern, re.IGNORECASE), lines) for pattern, _ in NEVER.values())


def test_plain_sentences_are_not_found() -> None:
    lines = [
        "Each worker that dies is replaced by another worker. Who may connect? The owner.",
        "There is no fd left, and the pool is no longer asked; at most 64 queues are served.",
        "The numbers are those of <linux/fuse.h>; the guest whose ring broke gets no reply.",
    ]
    assert [rule for rule, (p, _) in NEVER.items() if _breaks(re.compile(p), lines)] == []
