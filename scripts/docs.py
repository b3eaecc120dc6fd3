#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the parts of manual, completion and documents that are made from tables in the code.

    .venv/bin/python scripts/docs.py

tests/code/test_docs.py fails when the result is not committed.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import completion
import protocol_tables as protocol
import security_tables as security

from vfsd.supervisor.option_help import default_text, spellings
from vfsd.supervisor.options import OPTIONS, Option
from vfsd.supervisor.refusal import REFUSALS
from vfsd.transport.vhost_user import Number

ROOT: Final = Path(__file__).resolve().parents[1]
_WORD: Final = re.compile(r"[a-z][a-z-]*")  # but not flock(), guest:G:H:N or -f


def _sentence(text: str) -> str:
    """Text as a sentence: it then begins with a capital, unless it begins with syntax, which is
    unchanged."""
    if not text:
        return ""
    first = text.split(maxsplit=1)[0].rstrip(",;:.")
    begin = text[0].upper() if _WORD.fullmatch(first) else text[0]
    return begin + text[1:].rstrip(".") + "."


def _troff(text: str) -> str:
    """Text for troff: hyphens that can be copied, and no line that troff takes for a control
    line."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def manual() -> str:
    """The paragraphs of OPTIONS in virtiofsd(1)."""
    return "".join(_paragraph(row) for row in OPTIONS)


def _paragraph(row: Option) -> str:
    heads = [f"\\fB{_troff(name)}\\fR{_troff(rest)}" for name, rest in spellings(row)]
    lines = [".TP", ", ".join(heads), _troff(_sentence(row.help))]
    if row.default:
        lines.append(_troff(_sentence(default_text(row))))
    if row.repeatable:
        lines.append(_troff("Can be given more than once."))
    if row.hazard:
        lines.append(_troff(_sentence(row.hazard)))
    return "\n".join(lines) + "\n"


# A topic of docs/operations.md, and the field of the option with which the topic begins.
TOPICS: Final = (
    ("The share and its socket", "shared_dir"),
    ("Queues, workers, polling", "request_queues"),
    ("Open files", "rlimit_nofile"),
    ("The sandbox and its users", "sandbox"),
    ("Logs", "log_level"),
    ("What the guest may cache", "cache"),
    ("How inodes are held", "inode_file_handles"),
    ("Extended attributes, ACLs, labels", "xattr"),
    ("What guest and host agree on", "readdirplus"),
    ("Locks", "flock"),
    ("What the guest may do", "readonly"),
    ("Users and groups", "translate_uid"),
    ("Migration", "migration_mode"),
    ("Instead of serving", "action"),
)


def options() -> str:
    """The options by topic, a table for each."""
    titles = {first: title for title, first in TOPICS}
    lines: list[str] = []
    for row in OPTIONS:
        if title := titles.pop(row.field, None):
            heads = [
                "| option | `-o` | default | what it does; what to know |",
                "|---|---|---|---|",
            ]
            lines += ["", f"### {title}", "", *heads]
        lines.append(_line(row))
    if titles:
        raise ValueError(f"no option begins the topics {', '.join(titles.values())}")
    return "\n".join([*lines, "", ""])


def _line(row: Option) -> str:
    names = [f"`{name}{rest}`" for name, rest in spellings(row)]
    short = [name.replace("`-o ", "`") for name in names if name.startswith("`-o ")]
    long = [name for name in names if not name.startswith("`-o ")]
    about = " ".join(filter(None, (_sentence(row.help), _sentence(row.hazard))))
    cells = (" ".join(long), " ".join(short), row.default, about)
    return "|" + "|".join(f" {cell} ".replace("|", "\\|") for cell in cells) + "|"


def refusals() -> str:
    """The table of messages in docs/vmms.md."""
    lines = ["| message | without an acknowledgement | because |", "|---|---|---|"]
    for number, refusal in REFUSALS.items():
        lines.append(f"| {Number(number).name} | {refusal.fate.value} | {refusal.reason} |")
    return "\n".join(lines) + "\n"


Made = tuple[str, str, str, Callable[[], str]]

# File, the lines around the generated part, the function that makes the part.
MADE: Final[tuple[Made, ...]] = (
    ("docs/operations.md", "<!-- options: scripts/docs.py -->", "<!-- end -->", options),
    *(
        (f"contrib/completion/{name}", f"        # {part}: scripts/docs.py", "        # end", make)
        for name, part, make in (
            ("virtiofsd", "values", completion.values),
            ("virtiofsd", "options", completion.options),
            ("vfsd", "commands", completion.commands),
            ("vfsd", "words", completion.words),
            ("zsh/_vfsd", "commands", completion.commands),
            ("zsh/_vfsd", "words", completion.words),
        )
    ),
    (
        "contrib/completion/fish/vfsd.fish",
        "# commands: scripts/docs.py",
        "# end",
        completion.fish,
    ),
    ("contrib/man/virtiofsd.1", '.\\" options: scripts/docs.py', '.\\" end', manual),
    (
        "SECURITY.md",
        "<!-- capabilities: scripts/docs.py -->",
        "<!-- end -->",
        security.capability_table,
    ),
    ("docs/vmms.md", "<!-- refusals: scripts/docs.py -->", "<!-- end -->", refusals),
    *(
        ("docs/protocol.md", f"<!-- {name}: scripts/docs.py -->", "<!-- end -->", make)
        for name, make in protocol.TABLES.items()
    ),
    ("SECURITY.md", "<!-- attempts: scripts/docs.py -->", "<!-- end -->", security.attempts),
    ("SECURITY.md", "<!-- attacks: scripts/docs.py -->", "<!-- end -->", security.attack_table),
    ("SECURITY.md", "<!-- sandbox: scripts/docs.py -->", "<!-- end -->", security.sandbox_calls),
    ("SECURITY.md", "<!-- trusted: scripts/docs.py -->", "<!-- end -->", security.trusted_calls),
)


def written(name: str, begin: str, end: str, make: Callable[[], str]) -> str:
    """The text of a file in which the generated part is replaced."""
    before, _, rest = (ROOT / name).read_text().partition(begin + "\n")
    _, found, after = rest.partition(end + "\n")
    if not found:
        raise ValueError(f"{name} lacks '{begin}' or '{end}'")
    return f"{before}{begin}\n{make()}{end}\n{after}"


if __name__ == "__main__":
    sys.path.append(str(ROOT))  # for the tests
    for row in MADE:
        (ROOT / row[0]).write_text(written(*row))
