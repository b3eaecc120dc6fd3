# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from typing import Any

import pytest

from tests.worker.pool_process import FS
from vfsd.transport.job import Filesystem
from vfsd.transport.native import ffi, lib
from vfsd.worker import policy
from vfsd.worker.handles import Outcome


def filled(**changes: Any) -> Any:
    struct: Any = ffi.new("struct fs_policy *")
    policy.fill(struct, replace(Filesystem(**FS), **changes), Outcome.FDS)
    return struct


@pytest.mark.parametrize(
    ("cache", "file_flags", "dir_flags"),
    [("never", 65, 0), ("metadata", 65, 10), ("auto", 0, 0), ("always", 2, 10)],
)
def test_open_flags_of_each_cache_mode(cache: str, file_flags: int, dir_flags: int) -> None:
    struct = filled(cache=cache)
    assert (struct.file_open_flags, struct.dir_open_flags) == (file_flags, dir_flags)


def test_each_outcome_reaches_c() -> None:
    found = []
    for outcome in Outcome:
        struct: Any = ffi.new("struct fs_policy *")
        policy.fill(struct, Filesystem(**FS), outcome)
        found.append(struct.file_handles)
    assert found == [
        lib.FILE_HANDLES_NEVER,
        lib.FILE_HANDLES_SIGNED,
        lib.FILE_HANDLES_PREFER,
        lib.FILE_HANDLES_MANDATORY,
    ]


def test_timeouts_are_in_nanoseconds() -> None:
    struct = filled(entry_timeout=0.25, attr_timeout=86400.0)
    assert (struct.entry_timeout.sec, struct.entry_timeout.nsec) == (0, 250_000_000)
    assert (struct.attr_timeout.sec, struct.attr_timeout.nsec) == (86_400, 0)
    assert (struct.negative_timeout.sec, struct.negative_timeout.nsec) == (0, 0)
    negative = filled(negative_timeout=1.5).negative_timeout
    assert (negative.sec, negative.nsec) == (1, 500_000_000)


def test_a_lock_is_waited_for_so_long() -> None:
    assert filled(lock_wait=2.5).lock_wait_ns == 2_500_000_000
    assert filled(lock_wait=0).lock_wait_ns == 0
    assert filled(lock_wait=None).lock_wait_ns == (1 << 64) - 1


@pytest.mark.parametrize("name", policy.SWITCHES)
def test_each_switch_is_copied(name: str) -> None:
    assert getattr(filled(**{name: True}), name) is True
    assert getattr(filled(**{name: False}), name) is False


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cache": "auto"}, True),
        ({"cache": "auto", "readonly": True}, False),
        ({"cache": "never"}, False),
        ({"cache": "never", "allow_mmap": True}, True),
        ({"cache": "never", "writeback": True}, True),
    ],
)
def test_a_guest_that_can_write_later_holds_data_back(
    changes: dict[str, Any], expected: bool
) -> None:
    changes = {"writeback": False, "allow_mmap": False, "readonly": False, **changes}
    assert filled(**changes).holds_back is expected
