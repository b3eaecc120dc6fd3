# SPDX-License-Identifier: Apache-2.0
"""Numbers that Python and C both have, because one of them cannot ask the other."""

from vfsd.transport import option_types
from vfsd.transport.native import lib


def test_a_worker_serves_each_request_queue_that_can_be_asked_for() -> None:
    assert option_types.REQUEST_QUEUES_MAX == lib.WORKER_SLOTS_MAX
    assert option_types.REQUEST_QUEUES_MAX + 1 == lib.DEVICE_VRINGS_MAX  # and the hiprio queue
