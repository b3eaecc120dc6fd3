# SPDX-License-Identifier: Apache-2.0
import pytest

from vfsd.supervisor.restart_policy import (
    LONGEST_PAUSE,
    QUIET_SECONDS,
    GrowingPause,
    RestartPolicy,
)


def test_a_process_is_created_again_for_ever() -> None:
    policy, now, pauses, lines = RestartPolicy(), 0.0, [], []
    for _ in range(1000):
        restart = policy.after_death(now)
        assert restart
        pauses.append(restart.pause)
        lines.append(restart.note)
        now += restart.pause
    assert pauses[:6] == [0, 0, 0, 0.05, 0.1, 0.2]
    assert pauses == sorted(pauses)
    assert max(pauses) == LONGEST_PAUSE
    notes = [line for line in lines if line is not None]
    assert len(notes) == len(set(pauses)) + 2  # the first three deaths, then each longer pause
    assert notes[3] == " in 0.05 s, after 4 deaths in a row"


def test_after_a_quiet_time_there_is_no_pause_and_the_silent_deaths_are_counted() -> None:
    policy, now = RestartPolicy(), 0.0
    silent = 0
    for _ in range(20):
        restart = policy.after_death(now)
        assert restart
        silent += restart.note is None
        now += restart.pause
    assert silent
    restart = policy.after_death(now + QUIET_SECONDS)
    assert restart == (0.0, f"; {silent} earlier deaths were not logged")


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
def test_with_a_limit_five_deaths_within_ten_seconds_are_too_many(
    times: list[float], answers: list[bool]
) -> None:
    policy = RestartPolicy(give_up_after=5)
    assert [policy.after_death(now) is not None for now in times] == answers


def test_one_death_may_be_too_many() -> None:
    assert RestartPolicy(give_up_after=1).after_death(0) is None


def test_pauses_grow_up_to_a_maximum_and_end_when_it_is_calm() -> None:
    pause = GrowingPause(1.0, calm=60.0)
    assert [pause.next(now) for now in range(6)] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert pause.next(1000.0) == 0.0
    assert pause.next(1000.0 + 60.0) == 0.0
    assert pause.next(1001.0 + 60.0) == 0.1
