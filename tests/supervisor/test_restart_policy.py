# SPDX-License-Identifier: Apache-2.0
import pytest

from vfsd.supervisor.restart_policy import CALM_SECONDS, GrowingPause, RestartPolicy


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


def test_pauses_grow_up_to_a_maximum_and_end_when_it_is_calm() -> None:
    pause = GrowingPause(1.0)
    assert [pause.next(now) for now in range(6)] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert pause.next(1000.0) == 0.0
    assert pause.next(1000.0 + CALM_SECONDS) == 0.0
    assert pause.next(1001.0 + CALM_SECONDS) == 0.1
