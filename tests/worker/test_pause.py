# SPDX-License-Identifier: Apache-2.0
"""How long a slot waits for its next worker."""

from vfsd.worker.pause import FREE_DEATHS, Pause
from vfsd.worker.pool_state import LONGEST_PAUSE, SHORT_LIFE, Slot


def test_the_pause_grows_with_short_lives_and_ends_with_a_long_life() -> None:
    pause = Pause(1.0, 0.5)
    for _ in range(FREE_DEATHS):
        pause.note_life(0.1)
        assert pause.seconds == 0
    found = []
    for _ in range(20):
        pause.note_life(0.1)
        found.append(pause.seconds)
    assert found == sorted(found)
    assert found[-1] == 1.0
    pause.note_life(0.6)
    assert pause.seconds == 0


def die(slot: Slot, number: int, served: int, may_be_deadly: bool = False) -> float:
    """`number` short lives, in each of which `served` requests are finished. Return: the pause."""
    done = slot.served
    for _ in range(number):
        slot.served = done
        done += served
        slot.note_death(slot.born + SHORT_LIFE / 2, done, may_be_deadly)
    return slot.pause.seconds


def test_a_worker_that_serves_and_is_killed_from_outside_is_replaced_soon() -> None:
    slot = Slot()
    assert 0 < die(slot, 100, served=1) <= 0.05
    assert die(slot, 100, served=0) == LONGEST_PAUSE
    assert 0 < die(slot, 1, served=1) <= 0.05


def test_a_worker_that_dies_of_requests_is_replaced_after_a_growing_pause() -> None:
    assert die(Slot(), 100, served=1, may_be_deadly=True) == LONGEST_PAUSE


def test_a_slot_is_the_same_after_it_was_saved() -> None:
    slot = Slot(7, 1.5, served=9, respawn_at=2.5, is_condemned=True, before={3: "x"})
    die(slot, 8, served=0)
    assert Slot.decode(slot.encode()) == slot
