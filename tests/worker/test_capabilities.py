# SPDX-License-Identifier: Apache-2.0
import pytest

from vfsd.worker import capabilities


def test_the_table_is_these_eight() -> None:
    # CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, SETGID 6, SETUID 7, MKNOD 27, SETFCAP 31
    assert capabilities.mask(set(capabilities.KEPT)) == 0x880000DB


@pytest.mark.parametrize(("name", "number"), [("chown", 0), ("CAP_SYS_ADMIN", 21), ("BPF", 39)])
def test_numbers(name: str, number: int) -> None:
    assert capabilities.number(name) == number


def test_modcaps_adds_and_removes() -> None:
    names = capabilities.modified("+sys_admin:-mknod:-CAP_setfcap:-sys_boot")
    assert names == set(capabilities.KEPT) - {"MKNOD", "SETFCAP"} | {"SYS_ADMIN"}
    assert capabilities.modified("") == set(capabilities.KEPT)


@pytest.mark.parametrize("modcaps", ["+root", "mknod", "+", "-chown:*x"])
def test_nonsense_in_modcaps_is_refused(modcaps: str) -> None:
    with pytest.raises(ValueError, match=r"no capability|neither"):
        capabilities.modified(modcaps)
