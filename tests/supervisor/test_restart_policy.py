# SPDX-License-Identifier: Apache-2.0
import pytest

from vfsd.supervisor.restart_policy import RestartPolicy


@pytest.mark.parametrize(
    ("times", "answers"),
    [
        ([0, 1, 2, 3, 4], [True, True, True, True, False]),
        ([0, 1, 2, 3, 11], [True, True, True, True, True]),
        ([0, 3, 6, 9, 12, 15], [True] * 6),
        ([0, 3, 6, 9, 10], [True, True, True, True, False]),
        ([0, 100, 101, 102, 103, 104], [True] * 5 + [False]),
    ],
)
def test_five_deaths_within_ten_seconds_are_too_many(
    times: list[float], answers: list[bool]
) -> None:
    policy = RestartPolicy(deaths=5, seconds=10)
    assert [policy.may_restart(now) for now in times] == answers
