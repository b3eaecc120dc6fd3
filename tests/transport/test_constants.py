# SPDX-License-Identifier: Apache-2.0
"""Numbers that are written down in Python and in C, because neither can read the other's."""

from vfsd.transport import option_types
from vfsd.transport.native import lib


def test_a_worker_serves_each_request_queue_that_can_be_asked_for() -> None:
    assert option_types.REQUEST_QUEUES_MAX == lib.REQUEST_QUEUES_MAX


def test_the_inode_table_has_room_for_each_number_of_inodes_that_can_be_asked_for() -> None:
    assert option_types.INODES_MAX + 1 == lib.INODE_CAPACITY_MAX


def test_flags_that_an_older_header_lacks_have_the_kernels_numbers() -> None:
    """The header is transport/csrc/fuse_newer.h. The numbers here are those of the kernel's
    <linux/fuse.h> of FUSE 7.45."""
    bits = {
        "DIRECT_IO_ALLOW_MMAP": 36, "PASSTHROUGH": 37, "HAS_RESEND": 39, "ALLOW_IDMAP": 40,
        "OVER_IO_URING": 41, "REQUEST_TIMEOUT": 42,
    }  # fmt: skip
    assert {name: getattr(lib, f"FUSE_{name}") for name in bits} == {
        name: 1 << bit for name, bit in bits.items()
    }
