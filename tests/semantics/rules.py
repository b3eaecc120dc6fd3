# SPDX-License-Identifier: Apache-2.0
"""The form of a rule: the calls to make in an empty directory, and the outcome they must have."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .process import error_name, in_child
from .share import Folder, Place

Body = Callable[[], object]


@dataclass(frozen=True)
class Rule:
    """`body` runs as root with umask 022 in an empty directory of mode 777."""

    name: str
    body: Body
    expected: object


RULES: Final[dict[str, Rule]] = {}
_folder: list[Folder] = []


def rule(expected: object) -> Callable[[Body], Body]:
    """A decorator that adds a function to RULES. The function's name states the rule, and the rule
    holds if the function returns `expected`."""

    def enter(body: Body) -> Body:
        name = body.__name__.strip("_").replace("_", " ")
        assert name not in RULES, name
        RULES[name] = Rule(name, body, expected)
        return body

    return enter


def on_the_host(name: str) -> str:
    """The path on the host of a name in the current directory; it leads past the share."""
    return str(_folder[0].host / name)


def outcome(rule: Rule, place: Place) -> object:
    """The outcome of a rule in a place: the value, or the errno of an OSError it did not handle."""
    folder = place.new_folder()

    def run() -> object:
        _folder[:] = [folder]
        os.umask(0o022)
        os.chdir(folder.path)
        return rule.body()

    try:
        return in_child(run)
    except OSError as error:
        return f"{error_name(error)} where the rule expects none: {error.filename}"
