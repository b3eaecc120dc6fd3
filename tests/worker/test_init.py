# SPDX-License-Identifier: Apache-2.0
"""INIT: known bytes of struct fuse_init_in and fuse_init_out, and the features that each option
turns on."""

import errno
import struct
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.pool_process import FS
from vfsd.transport.job import Filesystem
from vfsd.worker import init

PLAIN: Final = Filesystem(**FS)
ALL_FLAGS: Final = 0xFFFFFFFF_FFFFFFFF

# {major, minor, max_readahead, flags, flags2, unused[11]}
LINUX_6_12: Final = struct.pack("<5I44x", 7, 41, 131072, 0x73FFFFFB, 0x1FD)
LINUX_5_4: Final = struct.pack("<4I", 7, 31, 131072, 0x03FFFFFB)


def options(**changes: Any) -> Filesystem:
    return replace(PLAIN, **changes)


def agree(argument: bytes, fs: Filesystem = PLAIN) -> init.Agreement:
    return init.negotiate(init.read_offer(argument), fs)


def test_reply_to_linux_6_12_byte_by_byte() -> None:
    flags = (
        1 << 0 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14
        | 1 << 15 | 1 << 18 | 1 << 22 | 1 << 28 | 1 << 29 | 1 << 30
    )  # fmt: skip
    expected = struct.pack(
        "<4I2H2I2HI28x",
        7, 41, 131072, flags,
        256, 192,        # max_background, congestion_threshold
        1 << 20, 1,      # max_write, time_gran
        256, 0,          # max_pages, map_alignment
        1 << 2 | 1 << 8,  # flags2: CREATE_SUPP_GROUP, ALLOW_IDMAP
    )  # fmt: skip
    reply = init.encode(agree(LINUX_6_12, options(announce_submounts=False)))
    assert len(reply) == 64
    assert reply == expected


def test_a_short_init_of_an_old_guest_has_no_flags2() -> None:
    agreement = agree(LINUX_5_4)
    assert agreement.minor == 31
    assert agreement.flags >> 30 == 0
    assert agreement.max_pages == 256


def test_flags2_count_only_with_init_ext() -> None:
    argument = struct.pack("<5I44x", 7, 41, 0, 0x33FFFFFB, 0x1FD)
    assert agree(argument).flags >> 32 == 0


def test_a_guest_without_max_pages_gets_32_pages() -> None:
    argument = struct.pack("<4I", 7, 31, 0, 0x03FFFFFB & ~(1 << 22))
    agreement = agree(argument)
    assert (agreement.max_pages, agreement.max_write) == (0, 131072)


def test_acls_need_the_umask() -> None:
    offer = init.Offer(7, 45, 0, ALL_FLAGS & ~(1 << 6))
    assert "POSIX_ACL" not in init.negotiate(offer, options(posix_acl=True)).names()


def test_the_minor_is_the_lower_one() -> None:
    assert agree(struct.pack("<4I", 7, 99, 0, 0)).minor == 45
    assert agree(struct.pack("<4I", 7, 27, 0, 0)).minor == 27


# The minor version of FUSE that introduced each flag, from the head of the kernel's <linux/fuse.h>.
SINCE: Final = {
    "MAX_PAGES": 28, "CACHE_SYMLINKS": 28, "SUBMOUNTS": 32, "HANDLE_KILLPRIV_V2": 33,
    "SETXATTR_EXT": 33, "INIT_EXT": 36, "SECURITY_CTX": 36, "CREATE_SUPP_GROUP": 38,
    "DIRECT_IO_ALLOW_MMAP": 39, "ALLOW_IDMAP": 41,
}  # fmt: skip


@pytest.mark.parametrize("minor", range(27, 46))
def test_a_flag_counts_from_the_minor_version_that_named_it(minor: int) -> None:
    fs = options(cache="always", security_label="auto", allow_mmap=True)
    argument = struct.pack("<5I44x", 7, minor, 0, 0xFFFFFFFF, 0xFFFFFFFF)
    names = set(agree(argument, fs).names())
    assert names & SINCE.keys() == {name for name, since in SINCE.items() if since <= minor}


def test_acls_are_not_enforced_by_a_flag_of_a_later_minor_version() -> None:
    offer = init.Offer(7, 32, 0, ALL_FLAGS)
    assert "POSIX_ACL" not in init.negotiate(offer, options(posix_acl="auto")).names()
    with pytest.raises(init.InitError):
        init.negotiate(offer, options(posix_acl="always"))


@pytest.mark.parametrize("version", [(7, 26), (7, 4), (6, 99), (0, 0)])
def test_an_older_protocol_is_refused(version: tuple[int, int]) -> None:
    with pytest.raises(init.InitError) as refused:
        agree(struct.pack("<4I", *version, 0, 0))
    assert refused.value.errno == errno.EPROTO
    assert f"{version[0]}.{version[1]}" in str(refused.value)


def test_a_newer_major_gets_ours_and_nothing_else() -> None:
    assert init.encode_version() == struct.pack("<2I56x", 7, 45)


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        ({"POSIX_LOCKS"}, {"posix_lock": True}),
        ({"FLOCK_LOCKS"}, {"flock": True}),
        ({"WRITEBACK_CACHE"}, {"writeback": True}),
        ({"POSIX_ACL"}, {"posix_acl": "always"}),
        ({"POSIX_ACL"}, {"posix_acl": "auto"}),
        ({"CACHE_SYMLINKS"}, {"cache": "always"}),
        ({"SECURITY_CTX"}, {"security_label": "auto"}),
        ({"DIRECT_IO_ALLOW_MMAP"}, {"allow_mmap": True}),
    ],
)
def test_an_option_adds_its_feature(names: set[str], changes: dict[str, Any]) -> None:
    offer = init.Offer(7, 45, 0, ALL_FLAGS)
    without = set(init.negotiate(offer, PLAIN).names())
    with_option = set(init.negotiate(offer, options(**changes)).names())
    assert with_option - without == names
    assert without <= with_option


@pytest.mark.parametrize("wanted", [False, True])
def test_a_guest_that_is_not_linux_has_readdirplus(wanted: bool) -> None:
    """UEFI firmware refuses a session without READDIRPLUS."""
    offer = init.Offer(7, 31, 0, 1 << 13)
    assert init.negotiate(offer, options(readdirplus=wanted)).names() == ["DO_READDIRPLUS"]


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        ({"DO_READDIRPLUS", "READDIRPLUS_AUTO"}, {"readdirplus": False}),
        ({"SUBMOUNTS"}, {"announce_submounts": False}),
        ({"ALLOW_IDMAP"}, {"idmapped_mounts": False}),
        ({"HANDLE_KILLPRIV_V2", "ATOMIC_O_TRUNC"}, {"killpriv_v2": False}),
    ],
)
def test_switching_off_takes_its_feature_away(names: set[str], changes: dict[str, Any]) -> None:
    offer = init.Offer(7, 45, 0, ALL_FLAGS)
    without = set(init.negotiate(offer, options(**changes)).names())
    assert set(init.negotiate(offer, PLAIN).names()) - without == names


ACL_BITS: Final = {"POSIX_ACL": 20, "DONT_MASK": 6, "SETXATTR_EXT": 29}


@pytest.mark.parametrize("name", ACL_BITS)
def test_acls_take_a_guest_that_can_do_all_of_it(name: str) -> None:
    offer = init.Offer(7, 45, 0, ALL_FLAGS & ~(1 << ACL_BITS[name]))
    assert "POSIX_ACL" not in init.negotiate(offer, options(posix_acl="auto")).names()
    with pytest.raises(init.InitError) as refused:
        init.negotiate(offer, options(posix_acl="always"))
    assert refused.value.errno == errno.EPROTO
    assert f"lacks {name};" in str(refused.value)


def test_killpriv_that_was_asked_for_and_is_not_there_is_reported() -> None:
    asked = options(killpriv_v2_asked=True)
    without = init.negotiate(init.Offer(7, 45, 0, ALL_FLAGS & ~(1 << 28)), asked)
    assert "--killpriv-v2" in init.shortcomings(without, asked)[0]
    assert init.shortcomings(without, PLAIN) == []
    assert init.shortcomings(without, replace(asked, killpriv_v2=False)) == []
    assert init.shortcomings(init.negotiate(init.Offer(7, 45, 0, ALL_FLAGS), asked), asked) == []


@given(st.integers(0, ALL_FLAGS), st.booleans())
def test_only_what_was_offered_is_agreed(flags: int, everything: bool) -> None:
    on = {name: True for name, value in FS.items() if value is False}
    fs = options(**on, cache="always") if everything else PLAIN
    agreed = init.negotiate(init.Offer(7, 45, 0, flags), fs).flags
    assert agreed & ~flags == 0


@given(st.binary(max_size=80))
def test_any_bytes_are_answered_or_refused(argument: bytes) -> None:
    try:
        agreement = agree(argument)
    except init.InitError:
        return
    assert len(init.encode(agreement)) == 64
