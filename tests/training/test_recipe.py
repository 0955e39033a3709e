"""Learning rates, against torch's own schedules where there are any, and when validation is due."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError

from pitune.training.recipe import Recipe


@pytest.mark.parametrize(
    ("schedule", "scheduler"),
    [
        ("cosine", lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)),
        ("linear", lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=20)),
        ("constant", lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
    ],
)
def test_schedules_equal_torchs(schedule: str, scheduler: object) -> None:
    recipe = Recipe(steps=20, learning_rate=0.3, schedule=schedule, warmup=0.0)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    reference = scheduler(optimizer)  # type: ignore[operator]
    for step in range(20):
        assert recipe.rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        reference.step()


def test_warmup_rises_to_the_peak_and_then_falls() -> None:
    recipe = Recipe(steps=20, learning_rate=1.0, schedule="linear", warmup=0.2)
    rates = [recipe.rate(step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(1 / 16)
    assert [Recipe(steps=1).rate(0), Recipe(steps=1, schedule="constant", warmup=0).rate(0)] == [1e-3, 1e-3]


@pytest.mark.parametrize(("every", "due"), [(None, [9]), (3, [2, 5, 8, 9]), (5, [4, 9]), (100, [9])])
def test_the_last_step_is_always_validated(every: int | None, due: list[int]) -> None:
    recipe = Recipe(steps=10, validate_every=every)
    assert [step for step in range(10) if recipe.validates(step)] == due


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"warmup": 1.0}, {"learning_rate": 0}, {"select": "first"}])
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(wrong)
