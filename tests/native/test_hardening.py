# SPDX-License-Identifier: Apache-2.0
"""The built extension has the defences for which vfsd/_native_build.py asks the compiler."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from vfsd import _native, _native_build

EXTENSION = Path(str(_native.__file__))
needs_x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="an x86 feature")


def readelf(*options: str) -> str:
    argv = [require("readelf"), "-W", *options, str(EXTENSION)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_functions_with_arrays_check_their_stack() -> None:
    assert "__stack_chk_fail" in readelf("--dyn-syms")


def test_calls_of_libc_with_a_known_room_are_checked() -> None:
    assert "_chk@" in readelf("--dyn-syms").replace("__stack_chk_fail", "")


def test_addresses_of_functions_are_read_only_after_the_start() -> None:
    assert "BIND_NOW" in readelf("--dynamic")
    assert "GNU_RELRO" in readelf("--program-headers")


def test_no_segment_is_writable_and_executable() -> None:
    rows = [line.split() for line in readelf("--program-headers").splitlines()]
    flags = [" ".join(row[6:-1]) for row in rows if row and row[0] in ("LOAD", "GNU_STACK")]
    assert len(flags) > 1
    assert not [text for text in flags if "W" in text and "E" in text]


@needs_x86
def test_a_shadow_stack_is_allowed() -> None:
    assert "SHSTK" in readelf("--notes")


@pytest.mark.parametrize("row", _native_build.HARDENING, ids=lambda row: row.choices[0][-1])
def test_each_defence_has_a_reason_and_this_compiler_knows_it(
    row: _native_build.Hardening,
) -> None:
    assert row.why
    if "-fcf-protection=return" not in row.choices[0] or os.uname().machine == "x86_64":
        assert any(map(_native_build.is_known, row.choices))


def test_an_option_that_the_compiler_does_not_know_is_left_out() -> None:
    assert not _native_build.is_known(("-fno-such-defence",))


def test_a_sanitized_build_has_no_defences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFSD_SANITIZE", "address,undefined")
    compiling, linking = _native_build.flags()
    assert not [option for option in compiling + linking if "FORTIFY" in option or "-z" in option]
