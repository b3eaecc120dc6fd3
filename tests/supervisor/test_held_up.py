# SPDX-License-Identifier: Apache-2.0
"""Which worker is waited for when it does not answer, and which worker is killed."""

import os

import pytest

from vfsd.supervisor.backend import ANSWER_TICKS, is_held_up
from vfsd.supervisor.descendants import Process, process_of

BEFORE = 5  # ticks of CPU time


@pytest.mark.parametrize(
    ("state", "used", "expected"),
    [
        ("D", 10 * ANSWER_TICKS, True),
        ("R", 0, True),
        ("R", ANSWER_TICKS - 1, True),
        ("R", ANSWER_TICKS, False),
        ("S", 0, False),
        ("T", 0, False),
        ("Z", 0, False),
    ],
)
def test_a_worker_that_cannot_answer_is_waited_for(state: str, used: int, expected: bool) -> None:
    worker = Process(
        pid=2, name="worker", state=state, parent=1, session=1, started=0, cpu=BEFORE + used
    )
    assert is_held_up(worker, BEFORE) == expected


def test_the_cpu_time_of_a_process_is_found() -> None:
    """In ticks, of which the kernel may have counted two less or more than times(2)."""
    used = os.times()
    found = process_of(os.getpid())
    assert abs(found.cpu - (used.user + used.system) * ANSWER_TICKS) <= 5
    assert found.state == "R"
