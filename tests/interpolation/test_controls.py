"""Controls of an interpolation: its setting, its tuning, other experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tinymerges import NEAR, SOURCES, TARGET, experts_of, materials_with_experts, plain_scores
from tinymodel import flat
from torch import nn

from pitune.errors import PituneError
from pitune.experts import Lora
from pitune.interpolation.jobs import ControlJob
from pitune.interpolation.settings import InterpolationSettings, SweepSettings
from pitune.interpolation.target import random_expert, tune_control
from pitune.interpolation.tune import Setting, Tuning, starting_logits, tune
from pitune.materials import Materials
from pitune.training.recipe import Recipe

FEW = Recipe(steps=6, batch_size=4, learning_rate=0.02)
SWEEP = SweepSettings(top_k=(1, 2, 3), validate_every=2)


@pytest.fixture
def materials(tiny_folder: Path, tmp_path: Path) -> Materials:
    return materials_with_experts(tmp_path, tiny_folder)


def make_job(randomized: bool, **settings: Any) -> ControlJob:
    """Control what took the nearest two; the farthest come the other way round."""
    chosen = InterpolationSettings.model_validate(settings)
    sources = NEAR if randomized else NEAR[::-1]
    artifacts, of = ("controls/a@4#0/x",), "interpolations/a@4#0"
    parts = (FEW, chosen, SWEEP, "x", of, randomized)
    return ControlJob(artifacts, {"of": "x", "randomized": randomized}, TARGET, sources, "experts/a@4#0", *parts)


def chosen(materials: Materials, own: str) -> None:
    facts = {"top_k": 2, "temperature": 0.3, "own": own, "rate": 2.0, "members": [*SOURCES[:2], "a@4#0"]}
    materials.store.commit("interpolations/a@4#0", {"made_up.json": b"{}"}, "mark", **facts)


@pytest.mark.parametrize("own", ["trained", "fresh"])
@pytest.mark.parametrize("randomized", [False, True])
def test_a_control_is_tuned_by_the_chosen_setting(randomized: bool, own: Any, materials: Materials) -> None:
    """Against the tuning called by itself, with experts that are put together here."""
    chosen(materials, own)
    tune_control(materials, make_job(randomized))
    manifest = materials.store.manifest("controls/a@4#0/x")
    assert manifest is not None
    experts = experts_of(materials)
    names = SOURCES[:2] if randomized else SOURCES[:0:-1]
    similarities = (0.8, 0.5) if randomized else (0.1, 0.5)
    some = [experts[SOURCES.index(name)] for name in names]
    if randomized:
        some = [random_expert(materials, one, f"a@4#0 {name}") for one, name in zip(some, names, strict=True)]
    some.append(materials.start if own == "fresh" else experts[-1])
    train, validation = (materials.rows(((TARGET, 1.0),), split) for split in ("train", "validation"))
    logits = starting_logits(similarities, 0.3, "similarity", own)
    twice = InterpolationSettings(weights_learning_rate=0.04, experts_rate=1.0)  # what they are by themselves
    expected = tune(Setting.of(materials), Tuning(some, logits, train, FEW, twice, "a@4#0"), validation)
    exported = materials.expert("controls/a@4#0/x")
    merged = expected.mixture.merged()
    torch.testing.assert_close(flat(exported), flat(merged), atol=1e-6, rtol=1e-5)
    found = manifest["validation"]["loss"], manifest["validation"]["accuracy"]
    assert plain_scores(materials, exported) == pytest.approx(found, abs=1e-5)
    assert [manifest[name] for name in ("top_k", "temperature", "own", "rate")] == [2, 0.3, own, 2.0]
    assert manifest["members"] == [*names, "a@4#0"] and manifest["randomized"] is randomized
    assert manifest["shared"] == (list(SOURCES[:2]) if randomized else [SOURCES[1]])
    assert (manifest["trials"], manifest["steps"]) == (1, 6) and manifest["rank_error"] == 0
    rows = materials.store.table("controls/a@4#0/x", "weights.parquet").to_pylist()
    assert {row["member"] for row in rows} == {*names, "a@4#0"}
    assert [point["step"] for point in materials.store.table("controls/a@4#0/x", "curve.parquet").to_pylist()] == [
        *range(1, 7)
    ]


def test_random_experts_are_as_large_and_each_source_has_its_own(materials: Materials) -> None:
    assert isinstance(materials.kind, Lora)
    experts = experts_of(materials)[:3]
    found = [random_expert(materials, one, f"a@4#0 {name}") for one, name in zip(experts, SOURCES, strict=True)]
    for one, expert in zip(found, experts, strict=True):
        assert one.keys() == expert.keys()
        for path, held in expert.items():
            sizes = [(tensors["lora_B.weight"] @ tensors["lora_A.weight"]).norm() for tensors in (one[path], held)]
            torch.testing.assert_close(sizes[0], sizes[1], rtol=1e-4, atol=1e-6)
            assert one[path]["lora_A.weight"].shape == held["lora_A.weight"].shape
    for one in found:
        for other in (*[other for other in found if other is not one], *experts):
            pairs = [
                nn.functional.cosine_similarity(
                    (one[path]["lora_B.weight"] @ one[path]["lora_A.weight"]).flatten(),
                    (other[path]["lora_B.weight"] @ other[path]["lora_A.weight"]).flatten(),
                    dim=0,
                )
                for path in one
            ]
            assert abs(torch.stack(pairs).mean()) < 0.2
    again = random_expert(materials, experts[0], f"a@4#0 {SOURCES[0]}")
    assert torch.equal(flat(again), flat(found[0]))
    assert not torch.equal(flat(random_expert(materials, experts[0], f"b@4#0 {SOURCES[0]}")), flat(found[0]))


def test_a_control_cuts_the_rank_as_the_interpolation_does(materials: Materials) -> None:
    chosen(materials, "trained")
    tune_control(materials, make_job(False, max_rank=3))
    manifest = materials.store.manifest("controls/a@4#0/x")
    assert manifest is not None and 0 < manifest["rank_error"] < 1
    assert {len(held["lora_A.weight"]) for held in materials.expert("controls/a@4#0/x").values()} == {3}


def test_without_its_interpolation_it_is_one_line(materials: Materials) -> None:
    with pytest.raises(PituneError, match=r"interpolations/a@4#0: is not there or not finished; run the study again$"):
        tune_control(materials, make_job(True))
