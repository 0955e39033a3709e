"""Cross-fitting: judged by hand, shares by an integral, folds fitted as their slice was, the average a plain one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinymerges import NEAR, SOURCES, TARGET, materials_with_experts

from pitune.errors import PituneError
from pitune.experts import Bank, Expert
from pitune.experts.checkpoint import to_files
from pitune.experts.lora import A
from pitune.interpolation.crossfit import crossfit, judge, shares
from pitune.interpolation.jobs import CrossfitJob
from pitune.interpolation.settings import InterpolationSettings, SweepSettings
from pitune.interpolation.tune import Setting, Tuning, starting_logits, tune
from pitune.materials import Materials
from pitune.tasks.task import Slice
from pitune.training.engine import EngineSettings
from pitune.training.loop import Member, PackTraining
from pitune.training.pack import PACK_SIZE
from pitune.training.recipe import Recipe

MEMBERS = (f"experts/{TARGET}", f"transfer/{TARGET}/b@2#0", f"interpolations/{TARGET}")
PLACE = f"baselines/{TARGET}/crossfit"
FEW = Recipe(steps=6, batch_size=4, learning_rate=0.02, select="best", validate_every=2)
LAST = FEW.model_copy(update={"select": "last", "validate_every": None})
FAST = FEW.model_copy(update={"learning_rate": 0.04})
CHOSEN: dict[str, Any] = {"top_k": 2, "temperature": 0.3}
WILD = FEW.model_copy(update={"learning_rate": 1e30})
FOLDS = 2


def test_what_is_not_clearly_better_does_not_help() -> None:
    """Four examples, by hand: their gains have a mean of .4, and squares of .3, .1, .1 and .3 about it."""
    single = torch.tensor([1.0, 1.2, 0.8, 1.0], dtype=torch.float64)
    gains = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
    error = math.sqrt(0.2 / 3) / 2
    found = judge(torch.stack([single, single + 0.1, single - gains]))
    assert found.losses == pytest.approx([1.0, 1.1, 0.6]) and found.gains == pytest.approx([0.0, -0.1, 0.4])
    assert found.errors == pytest.approx([0.0, 0.0, error], abs=1e-9) and found.helps
    for mean, helps in ((error + 0.01, True), (error - 0.01, False), (-1.0, False)):
        assert judge(torch.stack([single, single - gains + 0.4 - mean])).helps == helps
    unsure, sure = single - 10 * (gains - 0.4) - 0.2, single - gains
    assert not judge(torch.stack([single, sure + 0.3, unsure])).helps  # the best decides, and it is not sure


def test_methods_share_by_how_likely_they_make_the_examples_however_these_are_weighed() -> None:
    """Of two methods, against the integral: of two examples the Bayesian bootstrap's weights are uniform on a line."""
    apart = torch.tensor([0.9, -0.4], dtype=torch.float64)
    places = (np.arange(100_000) + 0.5) / 100_000
    gain = 2 * (places * 0.9 - (1 - places) * 0.4)
    expected = float((1 / (1 + np.exp(gain))).mean())
    assert shares(torch.stack([torch.zeros(2, dtype=torch.float64), apart])) == pytest.approx(
        [1 - expected, expected], abs=0.01
    )
    alike = torch.ones(3, 5, dtype=torch.float64)
    assert shares(alike) == pytest.approx([1 / 3] * 3, abs=1e-5)
    alike[1] = math.nan
    assert shares(alike) == pytest.approx([0.5, 0.0, 0.5])
    alike[1] = 3.0  # five examples, e to the -10: less than what is worth its ranks
    assert shares(alike) == pytest.approx([0.5, 0.0, 0.5])


@pytest.fixture
def materials(tmp_path: Path, tiny_folder: Path) -> Materials:
    made = materials_with_experts(tmp_path, tiny_folder)
    finish(made, FEW, "trained")
    return made


def finish(materials: Materials, recipe: Recipe, own: str, nearest: Recipe = FAST, rate: float = 2.0) -> None:
    """Let the three members be made up, and have chosen: ``single`` and ``nearest`` a recipe, ``pi`` the rest."""
    facts: list[dict[str, Any]] = [
        {"start": "common", "recipe": recipe.model_dump(), "steps": 12},
        {"start": f"experts/{SOURCES[0]}", "recipe": nearest.model_dump(), "steps": 12},
        {**CHOSEN, "rate": rate, "own": own, "steps": 24},
    ]
    for name, source, more in zip(MEMBERS, (str(TARGET), *SOURCES[1:]), facts, strict=True):
        files = to_files(materials.kind, materials.expert(f"experts/{source}"), "tiny")
        materials.store.commit(name, files, "mark", trials=2, seconds=1.5, **more)


def crossfitted(
    materials: Materials, target: Slice = TARGET, folds: int = FOLDS, max_rank: int | None = None
) -> dict[str, Any]:
    mixing = InterpolationSettings(max_rank=max_rank)
    parts = (FEW, mixing, SweepSettings(top_k=(2,)), "crossfit", MEMBERS, folds, PACK_SIZE)
    crossfit(materials, CrossfitJob((PLACE,), {"made": "up"}, target, NEAR, MEMBERS[0], *parts))
    manifest = materials.store.manifest(PLACE)
    assert manifest
    return dict(manifest)


def packed(materials: Materials, fold: Slice, start: Expert, recipe: Recipe) -> Expert:
    """Train an expert as every expert of a study is trained, to the last step."""
    recipe = recipe.model_copy(update={"select": "last", "validate_every": None})
    train, held = (materials.rows(((fold, 1.0),), role) for role in ("train", "validation"))
    member = Member(str(fold), start, train, held)
    engine = EngineSettings()
    return (
        PackTraining(materials.backbone, materials.kind, materials.objective, [member], recipe, engine).run()[0].expert
    )


def mixed(materials: Materials, fold: Slice, how: Any) -> Expert:
    """Tune the interpolation of the nearest two and an own expert by the setting that was chosen."""
    own = packed(materials, fold, materials.start, FEW) if how == "trained" else materials.start
    experts = [*(materials.expert(near.expert) for near in NEAR[:2]), own]
    logits = starting_logits([near.similarity for near in NEAR[:2]], 0.3, "similarity", how)
    rates = InterpolationSettings(weights_learning_rate=0.04, experts_rate=1.0)
    train, held = (materials.rows(((fold, 1.0),), role) for role in ("train", "validation"))
    return tune(Setting.of(materials), Tuning(experts, logits, train, LAST, rates, str(fold)), held).mixture.merged()


def held_out(materials: Materials, chosen: Slice, expert: Expert) -> list[float]:
    """Return the loss of each example that a slice or a fold validates on, one by one."""
    found = []
    for row in materials.rows(((chosen, 1.0),), "validation").rows:
        batch = materials.objective.collate(materials.backbone, materials.firsts, [[row]])
        answers = materials.objective.answers(materials.backbone, Bank(materials.kind, [expert]), batch)
        found.append(float(answers.losses.detach()))
    return found


@pytest.mark.parametrize(("recipe", "own", "fits"), [(FEW, "trained", 3), (FAST, "trained", 4), (FAST, "fresh", 3)])
def test_folds_are_fitted_as_their_slice_was_and_averaged(
    recipe: Recipe, own: str, fits: int, materials: Materials
) -> None:
    """Against packed training, tuning called by itself, losses row by row and a sum of updates."""
    finish(materials, recipe, own)
    manifest = crossfitted(materials)
    folds = [Slice.parse(f"{TARGET}~{fold}of{FOLDS}") for fold in range(1, FOLDS + 1)]
    experts = [[materials.expert(name)] for name in MEMBERS]
    for fold in folds:
        single = packed(materials, fold, materials.start, recipe)
        nearest = packed(materials, fold, materials.expert(f"experts/{SOURCES[0]}"), FAST)
        for held, one in zip(experts, (single, nearest, mixed(materials, fold, own)), strict=True):
            held.append(one)
    pairs = [list(zip((TARGET, *folds), held, strict=True)) for held in experts]
    losses = [[loss for chosen, one in held for loss in held_out(materials, chosen, one)] for held in pairs]
    said = judge(torch.tensor(losses, dtype=torch.float64))
    examples = sum(len(materials.data(chosen).validation) for chosen in (TARGET, *folds))
    assert manifest["examples"] == examples == len({*_keys(materials, TARGET)}) == len(losses[0])
    assert manifest["folds"] == FOLDS and manifest["helps"] == said.helps
    weights = manifest["weights"]
    assert manifest["members"] == [*MEMBERS] and weights == pytest.approx(said.weights, abs=1e-4)
    for facts, expected in (("tried", said.losses), ("gains", said.gains), ("errors", said.errors)):
        assert manifest[facts] == pytest.approx(dict(zip(MEMBERS, expected, strict=True)), abs=1e-4), facts
    kind: Any = materials.kind
    saved: Any = materials.saved(PLACE)
    for site, held in saved[1].items():
        parts = [weight * kind.delta(one[site]) for some, weight in zip(experts, weights, strict=True) for one in some]
        torch.testing.assert_close(saved[0].delta(held), sum(parts) / len(experts[0]), rtol=1e-3, atol=1e-5)
        ranks = [len(one[site][A]) for some, weight in zip(experts, weights, strict=True) for one in some if weight]
        assert len(held[A]) == sum(ranks)
    assert (manifest["trials"], manifest["steps"]) == (6 + fits * FOLDS, 48 + fits * FOLDS * FEW.steps)


def _keys(materials: Materials, chosen: Slice) -> list[str]:
    data = materials.data(chosen)
    return [example.key for example in (*data.train, *data.validation)]


def test_a_full_slice_is_judged_by_its_validation_examples(materials: Materials) -> None:
    whole = replace(TARGET, shots=None)
    manifest = crossfitted(materials, whole, folds=0)
    experts = [materials.expert(name) for name in MEMBERS]
    losses = [held_out(materials, whole, one) for one in experts]
    assert list(manifest["tried"].values()) == pytest.approx([sum(one) / len(one) for one in losses], abs=1e-5)
    assert (manifest["examples"], manifest["trials"], manifest["steps"]) == (len(losses[0]), 6, 48)
    assert manifest["weights"] == pytest.approx(shares(torch.tensor(losses, dtype=torch.float64)), abs=1e-4)
    kind: Any = materials.kind
    saved: Any = materials.saved(PLACE)
    for site, held in saved[1].items():
        parts = [weight * kind.delta(one[site]) for weight, one in zip(manifest["weights"], experts, strict=True)]
        torch.testing.assert_close(saved[0].delta(held), sum(parts), rtol=1e-3, atol=1e-5)


def test_a_rank_is_cut_as_an_interpolation_is(materials: Materials) -> None:
    whole = replace(TARGET, shots=None)
    assert crossfitted(materials, whole, folds=0)["rank_error"] == 0
    assert crossfitted(materials, whole, folds=0, max_rank=2)["rank_error"] > 0
    assert {len(held[A]) for held in materials.expert(PLACE).values()} == {2}


@pytest.mark.parametrize(("which", "settings"), [(1, {"nearest": WILD}), (2, {"rate": 1e30})])
def test_what_diverges_on_a_fold_is_out_and_changes_nothing_else(
    which: int, settings: dict[str, Any], materials: Materials
) -> None:
    whole = crossfitted(materials)
    finish(materials, FEW, "trained", **settings)
    manifest = crossfitted(materials)
    for facts in ("tried", "gains", "errors", "accuracies"):
        expected = {**whole[facts], MEMBERS[which]: None}
        assert manifest[facts] == pytest.approx(expected, abs=1e-5), facts
    assert manifest["weights"][which] == 0 and manifest["steps"] == whole["steps"]


def test_single_must_come_to_a_number(materials: Materials) -> None:
    finish(materials, WILD, "fresh")
    with pytest.raises(
        PituneError, match=rf"^{PLACE}: experts/{TARGET} has a loss that is no number on held-out examples; lower"
    ):
        crossfitted(materials)
    assert materials.store.manifest(PLACE) is None


def test_a_member_that_is_missing_is_one_line(materials: Materials) -> None:
    materials.store.discard(MEMBERS[1])
    with pytest.raises(PituneError, match=r"transfer/a@4#0/b@2#0: is missing; run the study again"):
        crossfitted(materials)
    assert materials.store.manifest(PLACE) is None
