"""Solution: codes that agree with the measured residual."""

from __future__ import annotations

import pytest
import torch

from imaml_lightning.problem.solution import Result, Solution, indicators

R = Result
# The solver's code, the residual measured afterwards (the tolerance is 1), the code that is right.
CERTIFIED = [
    (R.CONVERGED, 0.5, R.CONVERGED),
    (R.CONVERGED, 1.0, R.CONVERGED),
    (R.CONVERGED, 1.5, R.STEP_LIMIT),
    (R.STEP_LIMIT, 0.5, R.CONVERGED),
    (R.STEP_LIMIT, 1.5, R.STEP_LIMIT),
    (R.INDEFINITE, 0.5, R.CONVERGED),
    (R.INDEFINITE, 1.5, R.INDEFINITE),
    (R.BREAKDOWN, 1.5, R.BREAKDOWN),
    (R.NONFINITE, 1.5, R.NONFINITE),
    (R.CONVERGED, float("nan"), R.NONFINITE),
    (R.STEP_LIMIT, float("inf"), R.NONFINITE),
]


def test_certified() -> None:
    codes, residual, right = (torch.tensor(column) for column in zip(*CERTIFIED, strict=True))
    tasks = len(CERTIFIED)
    value, steps = torch.rand(tasks, 2), torch.arange(tasks)
    solution = Solution(value, codes, steps, torch.zeros(tasks), torch.ones(tasks)).certified(residual)
    assert solution.result.tolist() == right.tolist()
    assert solution.residual is residual
    assert solution.value is value
    assert solution.steps is steps


def test_tolerance_is_each_tasks_own() -> None:
    ones = torch.ones(2)
    solution = Solution(torch.zeros(2, 1), torch.tensor([R.STEP_LIMIT] * 2), ones, ones, torch.tensor([0.1, 10.0]))
    assert solution.certified(ones).result.tolist() == [R.STEP_LIMIT, R.CONVERGED]


def test_indicators_are_shares() -> None:
    shares = indicators(torch.tensor([R.CONVERGED, R.CONVERGED, R.NONFINITE, R.INDEFINITE]))
    assert {name: share.mean().item() for name, share in shares.items()} == {
        "converged": 0.5, "step_limit": 0.0, "indefinite": 0.25, "breakdown": 0.0, "nonfinite": 0.25,
        "stalled": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("result", list(Result))
def test_every_code_has_one_sentence_of_advice(result: Result) -> None:
    assert result.advice.endswith(".")
    assert result.advice.count(". ") == 0
