# SPDX-License-Identifier: Apache-2.0
"""The record of requests in flight that the front-end keeps: how large it is, and what it may be.
Never mapped here."""

from vfsd.transport.errors import ProtocolError
from vfsd.transport.native import lib
from vfsd.transport.vhost_user import U64_MAX, Inflight


def inflight_bytes(queue_size: int) -> int:
    """Bytes of one queue's in-flight region (split ring)."""
    return int(lib.inflight_region_bytes(queue_size))


def check_queues(record: Inflight, queue_count: int) -> None:
    """Refuse a record of queues that the device does not have."""
    if not 1 <= record.num_queues <= queue_count:
        raise ProtocolError(f"an in-flight record of {record.num_queues} queues")
    if not 1 <= record.queue_size <= lib.VRING_SIZE_MAX:
        raise ProtocolError(f"an in-flight record of queues of {record.queue_size} entries")


def check_record(record: Inflight, queue_count: int) -> None:
    """Refuse a record that cannot be mapped, or not hold its queues."""
    check_queues(record, queue_count)
    if record.mmap_offset + record.mmap_size > U64_MAX:
        raise ProtocolError("SET_INFLIGHT_FD: the record wraps")
    if record.mmap_size < record.num_queues * inflight_bytes(record.queue_size):
        raise ProtocolError("SET_INFLIGHT_FD: the record is too small for its queues")
