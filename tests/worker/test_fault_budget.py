# SPDX-License-Identifier: Apache-2.0
import signal

import pytest

from vfsd.worker.fault_budget import GUESSES, WINDOW_SECONDS, FaultBudget, is_fault

SEGV = -signal.SIGSEGV


def test_the_budget_allows_this_number_of_faults() -> None:
    budget = FaultBudget(3)
    assert [budget.why_not_again(SEGV, now) for now in (0.0, 1.0, 2.0)] == [None] * 3
    assert "more than 3 faults" in (budget.why_not_again(SEGV, 3.0) or "")
    assert budget.why_not_again(SEGV, 4.0) is not None


def test_an_hour_later_they_are_forgotten() -> None:
    budget = FaultBudget(2)
    assert budget.why_not_again(SEGV, 0.0) is None
    assert budget.why_not_again(SEGV, 10.0) is None
    assert budget.why_not_again(SEGV, WINDOW_SECONDS) is None
    assert budget.why_not_again(SEGV, WINDOW_SECONDS + 9.0) is not None
    assert budget.why_not_again(SEGV, 3 * WINDOW_SECONDS) is None


def test_zero_is_any_number() -> None:
    budget = FaultBudget(0)
    assert not any(budget.why_not_again(SEGV, float(now)) for now in range(1000))


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM, 0, 1, 3])
def test_what_is_no_fault_is_not_counted(code: int) -> None:
    budget = FaultBudget(1)
    assert not any(budget.why_not_again(code, 0.0) for _ in range(100))
    assert budget.why_not_again(SEGV, 0.0) is None


@pytest.mark.parametrize("fault", sorted(GUESSES))
def test_each_fault_counts(fault: signal.Signals) -> None:
    budget = FaultBudget(1)
    assert budget.why_not_again(-fault, 0.0) is None
    assert budget.why_not_again(-fault, 0.0) is not None


@pytest.mark.parametrize("limit", [0, 1, 1000])
def test_one_forbidden_call_is_enough(limit: int) -> None:
    assert "SIGSYS" in (FaultBudget(limit).why_not_again(-signal.SIGSYS, 0.0) or "")


@pytest.mark.parametrize("code", [*(-number for number in GUESSES), -signal.SIGSYS, 1, 3])
def test_a_request_is_blamed_for_what_it_can_have_caused(code: int) -> None:
    assert is_fault(code)


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM, 0])
def test_no_request_is_blamed_for_what_comes_from_outside(code: int) -> None:
    assert not is_fault(code)
