# SPDX-License-Identifier: Apache-2.0
"""The compiled xattrmap maps names as the rules of the language say."""

import errno
import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vfsd.transport.native import ffi, lib
from vfsd.transport.xattrmap import NAME_MAX, RULES_MAX, Rule, parse
from vfsd.worker.policy import fill_xattrmap

ROOT: Final = Path(__file__).resolve().parents[2]

# The alphabet is small, so that names often begin with a prefix of a rule.
names = st.text(alphabet="ab.", max_size=6).map(str.encode)
long_names = st.one_of(
    names, st.tuples(names, st.integers(200, NAME_MAX)).map(lambda n: (n[0] + b"a" * n[1])[:255])
)
rules = st.builds(
    Rule,
    type=st.sampled_from(["prefix", "ok", "bad", "unsupported"]),
    client=st.booleans(),
    server=st.booleans(),
    key=names,
    prepend=long_names,
)
tables = st.lists(rules, min_size=1, max_size=RULES_MAX).map(tuple)


def compiled(table: tuple[Rule, ...]) -> Any:
    ret: Any = ffi.new("struct xattrmap *")
    fill_xattrmap(ret, table)
    return ret


def to_host(table: Any, name: bytes) -> bytes | int:
    """The host's name for a name of the guest, or an errno."""
    room: Any = ffi.new("char[]", lib.XATTRMAP_NAME)
    err = lib.xattrmap_to_host(table, name, room)
    return bytes(ffi.string(room)) if err == 0 else -err  # type: ignore[arg-type]


def to_guest(table: Any, name: bytes) -> bytes | None:
    text: Any = ffi.new("char[]", name)
    found: Any = lib.xattrmap_to_guest(table, text)
    return None if found == ffi.NULL else bytes(ffi.string(found))  # type: ignore[arg-type]


def test_the_example_of_the_manual_keeps_trusted_names_from_the_guest() -> None:
    """A trusted.* name of the host can still be behind another name of the guest."""
    text = (ROOT / "contrib/man/virtiofsd.1").read_text()
    (example,) = re.findall(r"^\\-\\-xattrmap=\\\(aq(.*)\\\(aq$", text, re.MULTILINE)
    table = compiled(parse(example))
    for name in (b"trusted.overlay.opaque", b"trusted.virtiofs.security.capability", b"trusted."):
        assert to_host(table, name) == errno.EPERM
    hidden = b"trusted.virtiofs.security.capability"
    assert to_host(table, b"security.capability") == hidden
    assert to_guest(table, hidden) == b"security.capability"
    assert to_host(table, b"user.x") == b"user.x"


def reference_to_host(table: tuple[Rule, ...], name: bytes) -> bytes | int:
    for rule in table:
        if rule.client and name.startswith(rule.key):
            if rule.type == "bad":
                return errno.EPERM
            if rule.type == "unsupported":
                return errno.EOPNOTSUPP
            host = name if rule.type == "ok" else rule.prepend + name
            return host if len(host) <= NAME_MAX else errno.ERANGE
    return errno.EPERM


def reference_to_guest(table: tuple[Rule, ...], name: bytes) -> bytes | None:
    for rule in table:
        if rule.server and name.startswith(rule.prepend):
            if rule.type == "ok":
                return name
            return name.removeprefix(rule.prepend) or None if rule.type == "prefix" else None
    return None


@given(tables, long_names.filter(bool))
def test_c_and_reference_agree(table: tuple[Rule, ...], name: bytes) -> None:
    struct = compiled(table)
    assert to_host(struct, name) == reference_to_host(table, name)
    assert to_guest(struct, name) == reference_to_guest(table, name)
    for rule in table:  # names that begin with a key or a prefix of a rule
        for longer in (rule.key + name, rule.prepend + name):
            if len(longer) <= NAME_MAX:
                assert to_host(struct, longer) == reference_to_host(table, longer)
                assert to_guest(struct, longer) == reference_to_guest(table, longer)


@given(names, names, long_names.filter(bool))
def test_what_a_map_rule_sends_there_comes_back(key: bytes, prefix: bytes, name: bytes) -> None:
    table = compiled(parse(f":map:{key.decode()}:{prefix.decode()}:"))
    host = to_host(table, name)
    assume(isinstance(host, bytes))
    assert isinstance(host, bytes)
    assert to_guest(table, host) == name


@given(names.filter(bool), names.filter(bool), st.lists(names.filter(bool), max_size=3), names)
def test_what_a_prefix_rule_sends_there_comes_back(
    key: bytes, prefix: bytes, forbidden: list[bytes], rest: bytes
) -> None:
    bad = "".join(f":bad:client:{name.decode()}::" for name in forbidden)
    text = f"{bad}:prefix:all:{key.decode()}:{prefix.decode()}: :bad:all:::"
    table = compiled(parse(text))
    host = to_host(table, key + rest)
    if isinstance(host, bytes):
        assert to_guest(table, host) == key + rest
    else:
        assert any((key + rest).startswith(name) for name in forbidden)


def test_without_rules_names_are_what_they_are() -> None:
    table = compiled(())
    assert to_host(table, b"user.x") == to_guest(table, b"user.x") == b"user.x"


def test_a_bare_prefix_on_the_host_is_no_name() -> None:
    assert to_guest(compiled(parse(":map::user.v.:")), b"user.v.") is None


def test_bounds_are_the_same_on_both_sides() -> None:
    size: Final = lib.XATTRMAP_NAME
    assert (lib.XATTRMAP_RULES_MAX, size) == (RULES_MAX, NAME_MAX + 1)


@pytest.mark.parametrize("length", [254, 255])
def test_the_longest_name(length: int) -> None:
    table = compiled(parse(":prefix:all:a:b: :ok:all:::"))
    name = b"a" * length
    assert to_host(table, name) == (b"b" + name if length < 255 else errno.ERANGE)
