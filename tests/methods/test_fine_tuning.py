"""Fine-tuning: what it builds, how its jobs are packed and trained, and that its expert is scored like all others."""

from __future__ import annotations

from pathlib import Path

import pytest
from tinymodel import save_encoder
from tinystudy import make_materials, make_study

from pitune.config import load_config
from pitune.experts import Whole
from pitune.interpolation.scoring import ScoringJob, score
from pitune.methods.fine_tuning import RATE
from pitune.plan import Plan
from pitune.tasks.task import Slice
from pitune.training.choice import ChoiceJob
from pitune.training.loop import Alone
from pitune.training.pack import ExpertJob, make_packs
from pitune.training.recipe import Recipe
from pitune.training.settings import TrainingSettings
from pitune.training.work import ExpertTraining

TARGET = Slice("a", 2, 0)
RECIPE = Recipe(steps=2, batch_size=4, learning_rate=1e-3)


def jobs(count: int) -> list[ExpertJob]:
    """Jobs of all weights, and a LoRA."""
    part = ((TARGET, 1.0),)
    whole = [ExpertJob((f"trials/{n}",), {"n": n}, "a@2#0", part, RECIPE, kind=Whole()) for n in range(count)]
    return [*whole, ExpertJob(("experts/a@2#0",), {}, "a@2#0", part, RECIPE)]


def test_it_tries_smaller_rates_than_an_expert_and_trains_all_weights(tmp_path: Path) -> None:
    make_study(tmp_path, methods=["fine_tuning", "single"])
    plan = Plan.of(load_config(tmp_path / "study.yaml", ["sweep.trials=3"]))
    choice = plan.nodes["baselines/beta@2#1/fine_tuning"].job
    assert isinstance(choice, ChoiceJob)
    assert choice.tried == tuple(f"trials/beta@2#1/fine_tuning/rate-{share}" for share in ("1", "2", "0.5"))
    found = [plan.nodes[name].job for name in choice.tried]
    own = plan.nodes["experts/beta@2#1"].job
    for job, share in zip(found, (1, 2, 0.5), strict=True):
        assert isinstance(job, ExpertJob) and isinstance(own, ExpertJob) and isinstance(job.kind, Whole)
        assert job.recipe.learning_rate == pytest.approx(RATE * share * own.recipe.learning_rate)
        assert (job.name, job.data, job.start) == (own.name, own.data, None)
        assert job.inputs["kind"]["kind"] == "whole" and own.inputs["kind"]["kind"] == "lora"


def test_each_trains_alone() -> None:
    packs = make_packs(jobs(2), TrainingSettings(pack_size=6))
    assert sorted(len(pack.jobs) for pack in packs) == [1, 1, 1]
    assert len({pack.name for pack in packs}) == 3


def test_it_is_trained_and_scored_beside_experts_of_the_study(tmp_path: Path) -> None:
    materials = make_materials(tmp_path / "study", save_encoder(tmp_path / "model", "bert"), steps=2)
    training = TrainingSettings(pack_size=6)
    work = ExpertTraining(materials, training)
    for pack in make_packs(jobs(1), training):
        assert work.train(pack, Alone()) == {}
    kind, expert = materials.saved("trials/0")
    assert isinstance(kind, Whole) and any(tensor.any() for held in expert.values() for tensor in held.values())
    places = ("trials/0", "experts/a@2#0", None)
    scored = [ScoringJob((f"predictions/{n}.parquet",), {"n": n}, "a", expert) for n, expert in enumerate(places)]
    score(materials, scored)
    alone = [ScoringJob((f"alone/{n}.parquet",), {"n": n}, "a", expert) for n, expert in enumerate(places)]
    for together, one in zip(scored, alone, strict=True):
        score(materials, [one])
        (first,), (second,) = (job.artifacts for job in (together, one))
        assert materials.store.table(first).to_pylist() == materials.store.table(second).to_pylist()
    tables = [materials.store.table(job.artifacts[0])["score"].to_pylist() for job in scored]
    assert tables[0] != tables[1] != tables[2] != tables[0]
