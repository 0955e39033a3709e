"""Tuning an interpolation: what moves, what is chosen, where it starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tinymodel import KINDS, embed, flat, make_rows, make_task, random_expert, setting
from torch import Tensor, nn

from pitune.backbones import Backbone
from pitune.backbones.base import ROWS_AT_ONCE
from pitune.backbones.text import TextBackbone
from pitune.errors import PituneError
from pitune.experts import Bank, ExpertKind
from pitune.interpolation.mixture import Mixture
from pitune.interpolation.settings import InterpolationSettings
from pitune.interpolation.tune import Tuned, Tuning, Validation, starting_logits, tune, tune_together, validate
from pitune.objectives import Match, Row, Rows
from pitune.training.recipe import Recipe

LORA, ADAPTER = KINDS
TASK = make_task("toy", 3, 24)
RECIPE = Recipe(steps=8, batch_size=6, learning_rate=0.05, validate_every=2)


def run(encoder: TextBackbone, kind: ExpertKind = LORA, recipe: Recipe = RECIPE, **settings: object) -> Tuned:
    experts = [random_expert(kind, encoder, seed) for seed in range(3)]
    train, validation = (make_rows(encoder, TASK, split) for split in ("train", "validation"))
    chosen = InterpolationSettings.model_validate(settings)
    tuning = Tuning(experts, torch.tensor([0.2, 0.1, 1.0]), train, recipe, chosen, "toy@8#0")
    return tune(setting(encoder, kind), tuning, validation)


def score(encoder: TextBackbone, bank: Bank | Mixture) -> tuple[float, Tensor]:
    """Return the validation loss by another way: all texts at once, from the whole encoder."""
    examples = TASK.splits["validation"]
    candidates = embed(encoder, TASK.label_texts)
    with torch.no_grad(), bank.attached(encoder.model):
        logits = 10.0 * embed(encoder, [e.text for e in examples]) @ candidates.T
    return float(nn.functional.cross_entropy(logits, torch.tensor([e.label for e in examples]))), logits


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("train", ["weights", "weights+experts"])
def test_a_tuned_mixture_merges_to_the_same_scores(kind: ExpertKind, train: str, tiny: TextBackbone) -> None:
    tuned = run(tiny, kind, train=train)
    loss, logits = score(tiny, tuned.mixture)
    merged_loss, merged_logits = score(tiny, Bank(kind, [tuned.mixture.merged()]))
    torch.testing.assert_close(merged_logits, logits, atol=1e-4, rtol=1e-4)
    assert tuned.validation.loss == pytest.approx(loss, abs=1e-4) == pytest.approx(merged_loss, abs=1e-4)
    right = (logits.argmax(1) == torch.tensor([e.label for e in TASK.splits["validation"]])).float().mean()
    assert tuned.validation.accuracy == pytest.approx(float(right))


def test_weights_alone_leave_the_experts_as_they_are(tiny: TextBackbone) -> None:
    alone, both = run(tiny, train="weights"), run(tiny, train="weights+experts")
    for index in range(3):
        before = flat(random_expert(LORA, tiny, index))
        assert torch.equal(flat(alone.mixture.members.expert(index)), before)
        assert not torch.equal(flat(both.mixture.members.expert(index)), before)
    for tuned in (alone, both):
        assert not torch.equal(tuned.mixture.weights().detach(), tuned.start)
        torch.testing.assert_close(tuned.start, torch.tensor([0.2, 0.1, 1.0]).softmax(0).expand(4, 3))


def test_it_equals_a_plain_loop(tiny: TextBackbone) -> None:
    """The reference mixes dense updates with functional calls and torch's AdamW, one group per learning rate."""
    recipe = RECIPE.model_copy(update={"steps": 3, "weight_decay": 0.1, "schedule": "constant", "warmup": 0.0})
    tuned = run(tiny, recipe=recipe, granularity="global", weights_learning_rate=0.3, experts_rate=0.5)
    sites = list(random_expert(LORA, tiny, 0))
    members = [random_expert(LORA, tiny, seed) for seed in range(3)]
    alpha = torch.tensor([0.2, 0.1, 1.0], requires_grad=True)
    moving = [tensor.requires_grad_() for one in members for held in one.values() for tensor in held.values()]
    optimizer = torch.optim.AdamW(
        [{"params": [alpha], "lr": 0.3, "weight_decay": 0.0}, {"params": moving, "lr": 0.025, "weight_decay": 0.1}]
    )
    rows = make_rows(tiny, TASK)
    candidates = embed(tiny, TASK.label_texts)
    for chosen in rows.order("toy@8#0", 3, 6).tolist():
        weights = alpha.exp() / alpha.exp().sum()
        changed = {}
        for site in sites:
            pairs = [(one[site]["lora_B.weight"], one[site]["lora_A.weight"]) for one in members]
            update = sum(3.0 * w * b @ a for w, (b, a) in zip(weights, pairs, strict=True))  # alpha / rank = 6 / 2
            changed[f"{site}.weight"] = tiny.model.get_submodule(site).weight + update
        given = tiny.collate([row.encoded for row in rows.take(chosen)])
        states = torch.func.functional_call(tiny.model, changed, (), given).last_hidden_state
        mask = given["attention_mask"].unsqueeze(-1)
        embedded = nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
        labels = torch.tensor([TASK.splits["train"][row].label for row in chosen])
        loss = nn.functional.cross_entropy(10.0 * embedded @ candidates.T, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(tuned.mixture.alpha[0].detach(), alpha.detach(), atol=1e-4, rtol=1e-3)
    for index in range(3):
        found, expected = flat(tuned.mixture.members.expert(index)), flat(members[index]).detach()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert tuned.curve[-1]["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)


def test_best_and_last(tiny: TextBackbone) -> None:
    """Validated on wrong labels, a mixture gets worse as it learns: the best is an early one."""
    found = {}
    for select in ("best", "last"):
        experts = [random_expert(LORA, tiny, seed) for seed in range(3)]
        train, validation = (make_rows(tiny, TASK, split) for split in ("train", "validation"))
        validation.rows = [replace(row, target=(row.target + 1) % 3) for row in validation.rows]
        recipe = RECIPE.model_copy(update={"learning_rate": 0.3, "select": select})
        tuning = Tuning(experts, torch.zeros(3), train, recipe, InterpolationSettings(), "toy@8#0")
        tuned = tune(setting(tiny, LORA), tuning, validation)
        assert validate(setting(tiny, LORA), tuned.mixture, validation).loss == pytest.approx(
            tuned.validation.loss, abs=1e-5
        )
        found[select] = tuned
    measured = [point["validation"] for point in found["best"].curve if not math.isnan(point["validation"])]
    assert len(measured) == 4
    assert found["best"].validation.loss == min(measured) < measured[-1] == found["last"].validation.loss


@pytest.mark.parametrize("select", ["last", "best"])
def test_reports_select_nothing(select: str, tiny: TextBackbone) -> None:
    told: list[tuple[int, Validation]] = []
    experts = [random_expert(LORA, tiny, seed) for seed in range(2)]
    train, validation = (make_rows(tiny, TASK, split) for split in ("train", "validation"))
    recipe = RECIPE.model_copy(update={"select": select, "validate_every": None, "learning_rate": 0.3})
    tuned = tune(
        setting(tiny, LORA),
        Tuning(experts, torch.zeros(2), train, recipe, InterpolationSettings(), "toy@8#0"),
        validation,
        report=lambda step, found: told.append((step, found)),
        report_every=3,
    )
    assert [step for step, _ in told] == [3, 6, 8]
    assert told[-1][1] == tuned.validation  # the recipe validates at the end only, whatever is reported before


def test_validation_does_not_depend_on_the_batches(tiny: TextBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = Mixture(tiny, LORA, [random_expert(LORA, tiny, seed) for seed in range(2)], torch.zeros(2))
    rows = make_rows(tiny, TASK, "validation")
    large = validate(setting(tiny, LORA), mixed, rows)
    monkeypatch.setitem(ROWS_AT_ONCE, "cpu", 5)
    small = validate(setting(tiny, LORA), mixed, rows)
    assert small.loss == pytest.approx(large.loss, abs=1e-5)
    assert small.accuracy == large.accuracy
    assert large.loss == pytest.approx(score(tiny, mixed)[0], abs=1e-5)


def test_the_start_is_similarity_over_temperature() -> None:
    logits = starting_logits([0.6, 0.2], 0.5, "similarity", "trained")
    torch.testing.assert_close(logits, torch.tensor([1.2, 0.4, 2.0]))
    fresh = starting_logits([0.6, 0.2], 0.5, "similarity", "fresh")
    torch.testing.assert_close(fresh, torch.tensor([1.2, 0.4, 0.0]))
    weights = logits.softmax(0)
    assert float(weights[0] / weights[1]) == pytest.approx(math.exp((0.6 - 0.2) / 0.5))
    uniform = starting_logits([0.6, 0.2], 0.5, "uniform", "fresh")
    assert uniform.softmax(0).tolist() == pytest.approx([1 / 3] * 3)


def test_a_loss_that_is_not_a_number_is_one_line(tiny: TextBackbone) -> None:
    experts = [random_expert(LORA, tiny, seed) for seed in range(2)]
    list(experts[0].values())[-1]["lora_A.weight"][:] = math.nan
    train, validation = (make_rows(tiny, TASK, split) for split in ("train", "validation"))
    tuning = Tuning(experts, torch.zeros(2), train, RECIPE, InterpolationSettings(), "toy@8#0")
    with pytest.raises(
        PituneError, match=r"^interpolation of toy@8#0: the loss is nan at step 1; lower its learning rate"
    ):
        tune(setting(tiny, LORA), tuning, validation)


def several(encoder: TextBackbone, kind: ExpertKind, members: int) -> list[Tuning]:
    """Return five mixtures: other rows, in another order, other experts, rates, weight decay and starts."""
    rows = make_rows(encoder, TASK)
    parts = [replace_rows(rows, slice(start, None, 1 + start % 2)) for start in range(5)]
    rates = (0.05, 0.01, 0.05, 0.02, 0.1)
    return [
        Tuning(
            [random_expert(kind, encoder, 10 * place + seed) for seed in range(members)],
            torch.linspace(0, place, members),
            part,
            RECIPE.model_copy(update={"learning_rate": rate, "weight_decay": 0.1 * place}),
            InterpolationSettings(experts_rate=1.0, weights_learning_rate=rate),
            f"toy@8#{place}",
        )
        for place, (part, rate) in enumerate(zip(parts, rates, strict=True))
    ]


def replace_rows(rows: Rows, chosen: slice) -> Rows:
    found = copy.copy(rows)
    found.rows, found.sizes = rows.rows[chosen], [len(rows.rows[chosen])]
    return found


@pytest.mark.parametrize("at_once", [64, 12])  # rows: all in one pass, and two a pass
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_side_by_side_each_comes_to_what_it_comes_to_alone(
    kind: ExpertKind, members: int, at_once: int, tiny: TextBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third has no number to start with: it is out, and nobody else's business."""
    monkeypatch.setitem(ROWS_AT_ONCE, "cpu", at_once)
    tunings = several(tiny, kind, members)
    list(tunings[2].experts[0].values())[-1][next(iter(kind.parameter_names))][:] = math.nan
    together = tune_together(setting(tiny, kind), tunings, 6)
    assert together[2] is None
    validation = make_rows(tiny, TASK, "validation")
    for place in (0, 1, 3, 4):
        alone = tune(setting(tiny, kind), tunings[place], validation).mixture.merged()
        found = together[place]
        assert found is not None
        torch.testing.assert_close(flat(found), flat(alone), atol=1e-5, rtol=1e-4)
    assert tune_together(setting(tiny, kind), [], 6) == []


def test_all_may_diverge(tiny: TextBackbone) -> None:
    tunings = several(tiny, LORA, 1)[:2]
    for one in tunings:
        list(one.experts[0].values())[-1]["lora_A.weight"][:] = math.nan
    assert tune_together(setting(tiny, LORA), tunings, 6) == [None, None]


@pytest.mark.parametrize(("live", "most", "passes"), [(False, 6, {5}), (False, 4, {3, 2}), (True, 6, {1})])
def test_passes_are_of_like_size_and_who_acts_on_texts_goes_alone(
    live: bool, most: int, passes: set[int], tiny: TextBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side those would need the memory of as many times the texts."""
    given = replace(setting(tiny, LORA), objective=Match(scale=10.0, live=live))
    seen: list[int] = []
    plain = Match.collate

    def collate(self: Match, backbone: Backbone, firsts: Mapping[str, int], groups: Sequence[Sequence[Row]]) -> Any:
        seen.append(len(groups))
        return plain(self, backbone, firsts, groups)

    monkeypatch.setattr(Match, "collate", collate)
    assert all(tune_together(given, several(tiny, LORA, 1), most)) and set(seen) == passes
