"""Weights without gradients: what they minimise, how far they go, and what is committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nevergrad
import numpy as np
import pytest
import torch
from tinymerges import NEAR, SOURCES, TARGET, experts_of, materials_with_experts, plain_scores
from torch import nn

from pitune.interpolation import gradientfree
from pitune.interpolation.gradientfree import BOUND, search_weights
from pitune.interpolation.jobs import WeightSearchJob
from pitune.materials import Materials
from pitune.objectives.rows import seed_of

TRIED: list[dict[str, Any]] = [
    {"top_k": 3, "own": False, "penalty": 0.05},
    {"top_k": 2, "own": True, "penalty": 0.05},
    {"top_k": 2, "own": False, "penalty": 100.0},
]


@pytest.fixture
def materials(tiny_folder: Path, tmp_path: Path) -> Materials:
    return materials_with_experts(tmp_path, tiny_folder)


def search_job(tried: list[dict[str, Any]], evaluations: int = 12, rows: int = 100) -> WeightSearchJob:
    artifacts, own = ("baselines/a@4#0/x",), "experts/a@4#0"
    return WeightSearchJob(artifacts, {"tried": tried}, TARGET, NEAR, own, tuple(tried), evaluations, rows)


def searched(materials: Materials, job: WeightSearchJob) -> dict[str, Any]:
    search_weights(materials, job)
    manifest = materials.store.manifest(job.artifacts[0])
    assert manifest is not None
    return manifest


def test_it_equals_nevergrads_own_loop_on_dense_weights(materials: Materials) -> None:
    """The reference hands nevergrad a function: updates added to the frozen weights, each shot alone, plus the mean."""
    job = search_job(TRIED[:2])
    manifest = searched(materials, job)
    experts, backbone, kind = experts_of(materials), materials.backbone, materials.kind
    rows = materials.rows(((job.slice, 1.0),), "train")
    for setting, tried in zip(TRIED, manifest["tried"], strict=False):
        some = [*experts[: setting["top_k"]], *(experts[-1:] if setting["own"] else [])]
        names = [*SOURCES[: setting["top_k"]], *(["a@4#0"] if setting["own"] else [])]

        @torch.no_grad()
        def loss(weights: Any, some: Any = some) -> float:
            changed = {}
            for path in some[0]:
                pairs = [(one[path]["lora_B.weight"], one[path]["lora_A.weight"]) for one in some]
                update = sum(w * kind.alpha / kind.rank * b @ a for w, (b, a) in zip(weights, pairs, strict=True))  # type: ignore[attr-defined]
                changed[f"{path}.weight"] = backbone.model.get_submodule(path).weight + update
            total = 0.0
            candidates = backbone(backbone.inputs(rows.rows[0].task.texts, {}))
            for row in rows.rows:
                given = backbone.collate([row.encoded])
                states = torch.func.functional_call(backbone.model, changed, (), given).last_hidden_state
                logits = 20.0 * nn.functional.normalize(states.mean(1), dim=1) @ candidates.T
                total += float(nn.functional.cross_entropy(logits, torch.tensor([row.target])))
            return round(total / len(rows) + 0.05 * float(np.abs(weights).mean()), 4)

        array = nevergrad.p.Array(init=np.zeros(len(some)), lower=-1.5, upper=1.5)
        array.random_state = np.random.RandomState(seed_of(" ".join(names)) % 2**32)
        best = nevergrad.optimizers.NGOpt(array, budget=12).minimize(loss)
        assert tried["weights"] == pytest.approx(best.value.tolist(), abs=1e-3)


def test_the_weights_are_bounded_better_than_none_and_the_best_is_kept(materials: Materials) -> None:
    manifest = searched(materials, search_job(TRIED, evaluations=30))
    assert (manifest["trials"], manifest["steps"]) == (3, 90)
    free, own, held = manifest["tried"]
    assert len(free["weights"]) == 3 and len(own["weights"]) == 3 and len(held["weights"]) == 2
    assert all(abs(weight) <= BOUND for tried in manifest["tried"] for weight in tried["weights"])
    assert max(map(abs, held["weights"])) < 0.2 < max(map(abs, free["weights"]))  # a penalty holds them near zero
    losses = [tried["loss"] for tried in manifest["tried"]]
    best = losses.index(min(losses))
    assert manifest["setting"] == {**TRIED[best], "weights": manifest["tried"][best]["weights"]}
    sources = list(SOURCES[: TRIED[best]["top_k"]])
    assert manifest["members"] == (sources if not TRIED[best]["own"] else [*sources, "a@4#0"])
    exported = materials.expert("baselines/a@4#0/x")
    found = manifest["validation"]["loss"], manifest["validation"]["accuracy"]
    assert plain_scores(materials, exported) == pytest.approx(found, abs=1e-5)


def test_the_search_lowers_the_loss_on_the_shots(materials: Materials) -> None:
    searched(materials, search_job(TRIED[:1], evaluations=40))
    exported = materials.expert("baselines/a@4#0/x")
    assert plain_scores(materials, exported, "train")[0] < plain_scores(materials, materials.start, "train")[0] - 0.05


def test_searched_side_by_side_or_alone_a_setting_finds_the_same(materials: Materials) -> None:
    together = searched(materials, search_job(TRIED))["tried"]
    for setting, tried in zip(TRIED, together, strict=True):
        (alone,) = searched(materials, search_job([setting]))["tried"]
        assert alone["weights"] == pytest.approx(tried["weights"], abs=1e-3)


def test_an_evaluation_sees_so_many_shots_at_most(materials: Materials, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Spy(gradientfree.Shots):
        def __init__(self, setting: Any, rows: Any, count: int) -> None:
            seen.append(len({id(row) for row in rows}))
            super().__init__(setting, rows, count)

    monkeypatch.setattr(gradientfree, "Shots", Spy)
    for rows in (5, 100):
        search_weights(materials, search_job(TRIED[:1], evaluations=1, rows=rows))
    assert seen == [5, 8]


def test_a_loss_that_is_no_number_is_the_worst(materials: Materials, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever moves from zero is told as no number: what is recommended is then the start."""
    real = gradientfree.Shots.losses

    def losses(self: gradientfree.Shots, experts: Any) -> list[float]:
        still = [all(not held["lora_B.weight"].any() for held in expert.values()) for expert in experts]
        return [loss if at else float("nan") for loss, at in zip(real(self, experts), still, strict=True)]

    monkeypatch.setattr(gradientfree.Shots, "losses", losses)
    manifest = searched(materials, search_job(TRIED[:1], evaluations=6))
    assert manifest["tried"][0]["weights"] == pytest.approx([0.0] * 3, abs=1e-6)
