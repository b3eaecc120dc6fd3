# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: texts in the languages of --xattrmap and --translate-uid, and what they decide.

Input: one byte that chooses the language, then pieces of text.

What must hold: a text is refused with the error of its language or gives tables that C accepts; a
name of the host that the guest is shown is a part of the host's name; C translates as Python does.
"""

from collections.abc import Callable
from typing import Any, Final

from tests.fuzz.reader import Reader
from vfsd.transport import idmap, xattrmap
from vfsd.transport.native import ffi, lib
from vfsd.worker import policy

SEPARATORS: Final = (":", "/", "#", " ", "\n")
WORDS: Final = (
    "prefix", "ok", "bad", "unsupported", "map", "client", "server", "all", "user.", "trusted.",
    "security.", "user.virtiofsd.", "", "x" * 255, "guest", "host", "squash-guest", "squash-host",
    "forbid-guest", "0", "1", "1000", "65536", "4294967294", "4294967295", "4294967296",
)  # fmt: skip
NAME_BYTES: Final = 256  # XATTRMAP_NAME


def _text(reader: Reader) -> str:
    parts = []
    for _ in range(reader.number() % 40):
        choice = reader.number()
        if choice < 128:
            parts.append(WORDS[choice % len(WORDS)])
        elif choice < 250:
            parts.append(SEPARATORS[choice % len(SEPARATORS)])
        else:
            parts.append(reader.text())
    return "".join(parts)


def _xattrmap(reader: Reader) -> None:
    try:
        rules = xattrmap.parse(_text(reader))
    except xattrmap.XattrmapError:
        return
    assert len(rules) <= xattrmap.RULES_MAX
    table = ffi.new("struct xattrmap *")
    policy.fill_xattrmap(table, rules)
    while reader:
        name = reader.bytes(reader.number() % NAME_BYTES).partition(b"\0")[0]
        if not name:
            continue
        given = ffi.new("char[]", name)
        result = ffi.new("char[]", NAME_BYTES)
        if lib.xattrmap_to_host(table, given, result) == 0:
            assert len(ffi.string(result)) < NAME_BYTES
        shown = lib.xattrmap_to_guest(table, given)
        assert shown == ffi.NULL or name.endswith(bytes(ffi.buffer(shown, len(ffi.string(shown)))))


def _check_map(table: Any, ranges: tuple[idmap.Range, ...], id_: int) -> None:
    policy._fill_idmap(table, ranges)  # noqa: SLF001 - the whole policy needs a job
    assert lib.idmap_translate(table, id_) == idmap.translate(ranges, id_)
    assert 0 <= idmap.translate(ranges, id_) <= idmap.NO_ID


def _idmap(reader: Reader) -> None:
    rules = _text(reader).split("\n")
    try:
        maps = idmap.combine(rules)
    except ValueError:
        return
    pair: Any = ffi.new("struct idmap_pair *")
    while reader:
        id_ = reader.number(4)
        _check_map(ffi.addressof(pair, "to_host"), maps.to_host, id_)
        _check_map(ffi.addressof(pair, "to_guest"), maps.to_guest, id_)


LANGUAGES: Final[tuple[Callable[[Reader], None], ...]] = (_xattrmap, _idmap)


def run(data: bytes) -> None:
    """Parse one text, and let it decide about names or ids."""
    reader = Reader(data)
    reader.choice(LANGUAGES)(reader)
