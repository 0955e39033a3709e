"""The choice among trials: the lowest validation loss, and what all of them took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinymodel import flat
from tinystudy import make_materials

from pitune.errors import PituneError
from pitune.materials import Materials
from pitune.tasks.task import Slice
from pitune.training.choice import ChoiceJob, Spent, choose, spent
from pitune.training.engine import EngineSettings
from pitune.training.loop import Alone, Member, PackTraining
from pitune.training.pack import ExpertJob, make_packs
from pitune.training.recipe import Recipe
from pitune.training.settings import TrainingSettings
from pitune.training.work import ExpertTraining

MADE: dict[str, Any] = {"data": [["a@2#0", 1.0]], "start": "common", "step": 4, "inputs": {"of": "a trial"}}


@pytest.fixture
def materials(tiny_folder: Path, tmp_path: Path) -> Materials:
    return make_materials(tmp_path / "study", tiny_folder, steps=4)


def commit(materials: Materials, losses: list[float | None]) -> ChoiceJob:
    """Commit made-up trials with these losses; return the job that chooses among them."""
    for index, loss in enumerate(losses):
        error = {"error": f"expert {index}: the loss is nan"} if loss is None else {}
        took = {"trials": 1, "steps": 4, "seconds": 0.5}
        files = {"adapter_model.safetensors": f"weights {index}".encode()}
        validation = {"loss": loss, "accuracy": 0.5}
        materials.store.commit(f"trials/{index}", files, f"m{index}", validation=validation, **MADE, **took, **error)
    names = tuple(f"trials/{index}" for index in range(len(losses)))
    return ChoiceJob(("baselines/a@2#0/some",), {"makes": "choice", "of": list(names)}, names)


def test_the_lowest_validation_loss_is_chosen(materials: Materials) -> None:
    """Against a walk over the trials that shares no code; losses are from a few values, so that some are equal."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        losses = [None if value > 3 else float(value) for value in generator.integers(0, 5, 6)]
        job = commit(materials, [2.5, *losses])
        best, lowest = 0, 2.5
        for index, loss in enumerate(losses, 1):
            if loss is not None and loss < lowest:
                best, lowest = index, loss
        choose(materials, job)
        manifest = materials.store.manifest(job.artifacts[0])
        assert manifest is not None
        assert (manifest["chosen"], manifest["validation"]["loss"]) == (f"trials/{best}", lowest)
        assert list(manifest["tried"].values()) == [2.5, *losses] and tuple(manifest["tried"]) == job.tried
        assert materials.store.read(job.artifacts[0], "adapter_model.safetensors") == f"weights {best}".encode()
        assert (manifest["fingerprint"], manifest["inputs"]) == (job.fingerprint, job.inputs)
        assert {name: manifest[name] for name in ("data", "start", "step")} == {
            name: MADE[name] for name in ("data", "start", "step")
        }
        assert (manifest["trials"], manifest["steps"]) == (7, 28) and 3.5 <= manifest["seconds"] < 4.5
        assert "error" not in manifest


def test_where_nothing_can_be_chosen_it_is_one_line(materials: Materials) -> None:
    job = commit(materials, [None, None])
    with pytest.raises(PituneError, match=r"^all 2 trials failed; the first: expert 0: the loss is nan$"):
        choose(materials, job)
    materials.store.discard("trials/1")
    with pytest.raises(PituneError, match=r"trials/1: is missing; run the study again$"):
        choose(materials, job)
    assert materials.store.manifest(job.artifacts[0]) is None


def test_what_older_experts_took_is_in_their_recipe() -> None:
    assert spent({"recipe": {"steps": 40}, "seconds": 2.0}) == Spent(1, 40, 2.0)
    assert spent({"recipe": {"steps": 40}, "trials": 8, "steps": 300, "seconds": 2.0}) == Spent(8, 300, 2.0)
    assert spent({"seconds": 2.0}) == Spent(0, 0, 2.0) and spent({}) == Spent(0, 0, 0.0)


def test_trials_are_trained_as_each_would_be_alone_and_the_best_is_copied(materials: Materials) -> None:
    """Learning rates of which the third is too large for float32; the reference trains one after another."""
    target = Slice.parse("a@2#0")
    recipes = [Recipe(steps=4, batch_size=4, learning_rate=rate) for rate in (1e-6, 0.02, 1e30, 0.001)]
    jobs = [
        ExpertJob((f"trials/{index}",), {"trial": index}, str(target), ((target, 1.0),), recipe, may_fail=True)
        for index, recipe in enumerate(recipes)
    ]
    for pack in make_packs(jobs, TrainingSettings()):
        assert ExpertTraining(materials, TrainingSettings()).train(pack, Alone()) == {}
    job = ChoiceJob(("baselines/a@2#0/some",), {"makes": "choice"}, tuple(job.artifacts[0] for job in jobs))
    choose(materials, job)

    alone = []
    for recipe in recipes:
        rows = [materials.rows(((target, 1.0),), role) for role in ("train", "validation")]
        member = Member(str(target), materials.start, *rows)
        parts = (materials.backbone, materials.kind, materials.objective, [member], recipe, EngineSettings())
        alone += PackTraining(*parts).run()
    assert alone[2].error is not None
    best = min((0, 1, 3), key=lambda index: alone[index].validation["loss"])
    manifest = materials.store.manifest(job.artifacts[0])
    assert manifest is not None and manifest["chosen"] == f"trials/{best}"
    assert manifest["tried"]["trials/2"] is None and manifest["recipe"] == recipes[best].model_dump()
    torch.testing.assert_close(flat(materials.expert(job.artifacts[0])), flat(alone[best].expert), atol=2e-5, rtol=1e-3)
