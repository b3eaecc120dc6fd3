# SPDX-License-Identifier: Apache-2.0
"""The record of requests in flight that the front-end keeps: its size, and the checks of its
description. The supervisor never maps the record."""

import os

from vfsd.transport.errors import ProtocolError
from vfsd.transport.message_socket import MessageSocket
from vfsd.transport.native import lib
from vfsd.transport.shared_memory import create_segment
from vfsd.transport.vhost_user import U64_MAX, Inflight, Number, encode_reply


def inflight_bytes(queue_size: int) -> int:
    """Bytes of one queue's in-flight region (split ring)."""
    return int(lib.inflight_region_bytes(queue_size))


def check_queues(record: Inflight, queue_count: int) -> None:
    """Refuse a record of queues that the device does not have."""
    if not 1 <= record.num_queues <= queue_count:
        raise ProtocolError(
            f"in-flight record: num_queues is {record.num_queues}; this device has {queue_count}"
        )
    if not 1 <= record.queue_size <= lib.VRING_SIZE_MAX:
        raise ProtocolError(
            f"in-flight record: queue_size is {record.queue_size}; expected 1 to"
            f" {lib.VRING_SIZE_MAX}"
        )


def check_record(record: Inflight, queue_count: int) -> None:
    """Refuse a record that cannot be mapped, or that is too small for its queues."""
    check_queues(record, queue_count)
    if record.mmap_offset + record.mmap_size > U64_MAX:
        raise ProtocolError(
            f"SET_INFLIGHT_FD: mmap_size {record.mmap_size:#x} at mmap_offset"
            f" {record.mmap_offset:#x} wraps"
        )
    needed = record.num_queues * inflight_bytes(record.queue_size)
    if record.mmap_size < needed:
        raise ProtocolError(
            f"SET_INFLIGHT_FD: mmap_size is {record.mmap_size}; its queues need {needed}"
        )


def send_record(frontend: MessageSocket, record: Inflight) -> None:
    """Answer GET_INFLIGHT_FD with a new, zeroed record of `record.mmap_size` bytes."""
    fd = create_segment("vfsd-inflight", record.mmap_size)
    try:
        frontend.send(encode_reply(Number.GET_INFLIGHT_FD, record), [fd])
    finally:
        os.close(fd)
