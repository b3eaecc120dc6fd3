# SPDX-License-Identifier: Apache-2.0
"""The subjects of commits have the form `area: imperative summary`, from the commit that added this
file onwards.

A source archive and a shallow clone have no history to look at, so the test checks no commit there.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LENGTH_MAX = 60
SUBJECT = re.compile(r"(?P<area>[\w./*-]+(, [\w./*-]+)*): (?P<first>[\w.-]+)( .*[^.])?")
# "add" says what the commit does; "added", "adding" and "adds" describe it. The words of IMPERATIVE
# have such an ending and are imperatives nevertheless.
ENDINGS = ("ed", "ing", "s")
IMPERATIVE = {
    "access", "address", "bring", "bypass", "compress", "discuss", "embed", "express", "feed",
    "focus", "miss", "need", "pass", "process", "seed", "shed", "speed", "stress", "suppress",
}  # fmt: skip
NOT_VERBS = {"a", "an", "it", "its", "no", "not", "one", "some", "the", "there", "this", "what"}


def fault(subject: str) -> str:
    """What is wrong with a subject; "" if the subject is right."""
    found = SUBJECT.fullmatch(subject)
    if found is None:
        return "is not of the form 'area: imperative summary', without a period"
    if len(subject) > LENGTH_MAX:
        return f"has {len(subject)} characters; {LENGTH_MAX} are the most"
    first = found["first"].lower()
    if first in NOT_VERBS or (first.endswith(ENDINGS) and first not in IMPERATIVE):
        return f"'{found['first']}' is not an imperative"
    return ""


def git(*arguments: str) -> list[str]:
    """The lines that git prints; no lines if there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def test_each_commit_says_what_it_does() -> None:
    here = str(Path(__file__).resolve().relative_to(ROOT))
    added = git("log", "--diff-filter=A", "--format=%H", "--", here)
    subjects = git("log", "--no-merges", "--format=%s", f"{added[-1]}^..HEAD") if added else []
    assert [f"'{s}' {wrong}" for s in subjects if (wrong := fault(s))] == []


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("poll: compute the budget once per wait", ""),
        ("worker/csrc, tests: move the files into storeys", ""),
        ("docs.py: process what is generated", ""),
        ("compute the budget once per wait", "is not of the form"),
        ("poll: compute the budget.", "is not of the form"),
        ("poll: compute the budget once per wait, and read all of it again", "60 are the most"),
        ("poll: computed the budget", "'computed' is not an imperative"),
        ("poll: computing the budget", "'computing' is not"),
        ("poll: computes the budget", "'computes' is not"),
        ("poll: the budget", "'the' is not"),
    ],
)
def test_the_form_of_a_subject(subject: str, words: str) -> None:
    assert (words in fault(subject)) if words else not fault(subject)
