# SPDX-License-Identifier: Apache-2.0
"""The xattrmap language: its rules, and the position that the message about a mistake gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.transport.xattrmap import RULES_MAX, Rule, XattrmapError, parse

ALL_OK = Rule("ok", True, True, b"", b"")
ALL_BAD = Rule("bad", True, True, b"", b"")


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        (":ok:all:::", (ALL_OK,)),
        ("  \n/ok/all///\t", (ALL_OK,)),
        (":prefix:all::user.v.::bad:all:::",
         (Rule("prefix", True, True, b"", b"user.v."), ALL_BAD)),
        (":unsupported:client:user.:: =bad=server==trusted.= ,ok,all,,,",
         (Rule("unsupported", True, False, b"user.", b""),
          Rule("bad", False, True, b"", b"trusted."), ALL_OK)),
        # A field may contain white space, and characters that are separators in other rules.
        ("xokxallxa b\n:xx:bad:all:::", (Rule("ok", True, True, b"a b\n:", b""), ALL_BAD)),
        ("éokéallétrusted.éé:bad:all:::", (Rule("ok", True, True, b"trusted.", b""), ALL_BAD)),
        (":ok:all:\udcff:::ok:all:::", (Rule("ok", True, True, b"\xff", b""), ALL_OK)),
        (":ok:client::: :bad:server:::",
         (Rule("ok", True, False, b"", b""), Rule("bad", False, True, b"", b""))),
        (":map::user.v.:", (Rule("prefix", True, True, b"", b"user.v."), ALL_BAD)),
        ("/bad/all/trusted.overlay.// /map/trusted./user.v./",
         (Rule("bad", True, True, b"trusted.overlay.", b""),
          Rule("prefix", True, True, b"trusted.", b"user.v."),
          Rule("bad", False, True, b"", b"trusted."),
          Rule("bad", True, False, b"user.v.", b""), ALL_OK)),
    ],
)  # fmt: skip
def test_what_is_in_the_language(text: str, rules: tuple[Rule, ...]) -> None:
    assert parse(text) == rules


END = "a last rule is missing, for every other name "


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", f"rule 1, column 1: {END}from the guest"),
        (" \n ", f"rule 1, line 2, column 2: {END}from the guest"),
        (":", "rule 1, column 2: the type does not end with ':'"),
        (":oak:all:::", "rule 1, column 2: the type 'oak' is not one of map, prefix, ok, bad, uns"),
        (":ok:every:::", "rule 1, column 5: the scope 'every' is not one of client, server, all"),
        (":ok:all", "rule 1, column 5: the scope does not end with ':'"),
        (":ok:all:user.", "rule 1, column 9: the key does not end with ':'"),
        (":ok:all::x /ok/all///", "rule 1, column 10: the prepend does not end with ':'"),
        (":ok:all:::\n:prefix/all:::", "rule 2, line 2, column 2: the type 'prefix/all' is not"),
        (":ok:all::: x", "rule 2, column 13: the type does not end with 'x'"),
        (":map:::", None),
        (":map::user.: :ok:all:::", "rule 2, column 14: no rule may follow a map rule"),
        (":ok:client:::", f"rule 2, column 14: {END}on the host"),
        (":bad:all:user.:: :ok:server:::", f"rule 3, column 31: {END}from the guest"),
        (":prefix:all::user.v.:", f"rule 2, column 22: {END}on the host"),
        (f":ok:all:{'x' * 256}::", "rule 1, column 9: the key is longer than 255 bytes"),
        (f":map::{'é' * 128}:", "rule 1, column 7: the prefix is longer than 255 bytes"),
        (":ok:all:::" * (RULES_MAX + 1), "has 65 rules; at most 64 are allowed"),
    ],
)
def test_a_mistake_is_said_with_its_place(text: str, error: str | None) -> None:
    if error is None:
        parse(text)
        return
    with pytest.raises(XattrmapError) as wrong:
        parse(text)
    assert str(wrong.value).startswith(error)
    assert "\n" not in str(wrong.value)


@given(st.text(alphabet=":/ \nokbadallmprefixserverclient\udc80", max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        rules = parse(text)
    except XattrmapError:
        return
    assert any(r.client and not r.key for r in rules)
    assert any(r.server and not r.prepend for r in rules)
