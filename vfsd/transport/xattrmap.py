# SPDX-License-Identifier: Apache-2.0
"""The xattrmap language: the names that the guest's extended attributes have on the host.

The supervisor parses the operator's text to refuse a mistake at the start; the workers parse the
same text to compile it (worker/policy.py). Nothing here does I/O or depends on either of them.

    text  = rule { white space rule }
    rule  = S type S scope S key S prepend S  |  S "map" S key S prepend S
    type  = "prefix" | "ok" | "bad" | "unsupported"        scope = "client" | "server" | "all"

S is any character; each rule chooses its own. For a name that the guest gives, the first rule of
scope client or all whose key the name begins with decides. For a name in a listing of the host, the
first rule of scope server or all whose prepend the name begins with decides. "map" stands for the
rules of _mapped() and ends the text. A text must decide about every name in both directions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

RULES_MAX: Final = 64  # XATTRMAP_RULES_MAX of the workers' C
NAME_MAX: Final = 255  # bytes; XATTR_NAME_MAX of the kernel

_SPACE: Final = " \t\n\v\f\r"
_TYPES: Final = ("prefix", "ok", "bad", "unsupported")
_SCOPES: Final = ("client", "server", "all")


class XattrmapError(ValueError):
    """The text is not in the language; the message says at which rule and column."""


@dataclass(frozen=True)
class Rule:
    """One rule. `key` is compared with names that the guest gives, `prepend` with names on the
    host."""

    type: str
    client: bool
    server: bool
    key: bytes
    prepend: bytes


def parse(text: str) -> tuple[Rule, ...]:
    """The rules of a text, with "map" expanded; XattrmapError if the text is not in the
    language."""
    reader = _Reader(text)
    rules = [rule for found in reader.rules() for rule in found]
    for ends, origin in (
        (any(r.client and not r.key for r in rules), "from the guest"),
        (any(r.server and not r.prepend for r in rules), "on the host"),
    ):
        if not ends:
            raise reader.error(
                f"a last rule is missing, for every other name {origin}: :ok:all::: or :bad:all:::"
            )
    if len(rules) > RULES_MAX:
        raise XattrmapError(f"has {len(rules)} rules; at most {RULES_MAX} are allowed")
    return tuple(rules)


def _mapped(key: bytes, prepend: bytes) -> tuple[Rule, ...]:
    """Prefix the names that begin with `key`, and hide the prefixed names themselves from the
    guest."""
    prefix = Rule("prefix", True, True, key, prepend)
    if not key:
        return prefix, Rule("bad", True, True, b"", b"")
    return (
        prefix,
        Rule("bad", False, True, b"", key),  # names on the host that begin with `key`
        Rule("bad", True, False, prepend, b""),
        Rule("ok", True, True, b"", b""),
    )


class _Reader:
    """The position in the text; an error is reported with it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._rule = 0
        self._ended = False  # by "map"

    def error(self, what: str, at: int | None = None) -> XattrmapError:
        at = self._at if at is None else at
        before = self._text[:at]
        line = f"line {before.count(chr(10)) + 1}, " if "\n" in self._text else ""
        column = at - (before.rfind("\n") + 1) + 1
        return XattrmapError(f"rule {self._rule}, {line}column {column}: {what}")

    def rules(self) -> Iterator[tuple[Rule, ...]]:
        while self._next_rule():
            if self._ended:
                raise self.error("no rule may follow a map rule")
            yield self._read_rule()

    def _next_rule(self) -> bool:
        """Go to the next rule. At the end of the text `_rule` is the number that a next rule would
        have."""
        while self._at < len(self._text) and self._text[self._at] in _SPACE:
            self._at += 1
        self._rule += 1
        return self._at < len(self._text)

    def _read_rule(self) -> tuple[Rule, ...]:
        separator = self._text[self._at]
        self._at += 1
        kind = self._word(separator, "type", ("map", *_TYPES))
        if kind == "map":
            self._ended = True
            return _mapped(self._name(separator, "key"), self._name(separator, "prefix"))
        scope = self._word(separator, "scope", _SCOPES)
        key, prepend = self._name(separator, "key"), self._name(separator, "prepend")
        return (Rule(kind, scope != "server", scope != "client", key, prepend),)

    def _field(self, separator: str, what: str) -> tuple[str, int]:
        """The text up to the next separator, and the position where the text begins."""
        start = self._at
        end = self._text.find(separator, start)
        if end < 0:
            raise self.error(f"the {what} does not end with {separator!r}")
        self._at = end + 1
        return self._text[start:end], start

    def _word(self, separator: str, what: str, words: tuple[str, ...]) -> str:
        word, start = self._field(separator, what)
        if word not in words:
            raise self.error(f"the {what} {word!r} is not one of {', '.join(words)}", start)
        return word

    def _name(self, separator: str, what: str) -> bytes:
        text, start = self._field(separator, what)
        name = text.encode(errors="surrogateescape")
        if b"\0" in name or len(name) > NAME_MAX:
            raise self.error(f"the {what} is longer than {NAME_MAX} bytes, or not text", start)
        return name
