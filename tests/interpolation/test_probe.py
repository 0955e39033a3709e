"""The linear probe: against scikit-learn called by hand, on embeddings that plain transformers computes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from tinymodel import make_task, plain_embedding
from tinystudy import make_materials
from transformers import AutoModel, AutoTokenizer

from pitune.interpolation.jobs import ProbeJob
from pitune.interpolation.probe import FIRST, features, fit_probe, score_probes, swept
from pitune.interpolation.scoring import ScoringJob
from pitune.materials import Materials
from pitune.tasks.metrics import METRICS
from pitune.tasks.task import Example, Slice

Numbers = NDArray[np.float64]
TARGETS = (Slice("a", 4, 0), Slice("b", 4, 1))
"""Of a task of two labels, and of one of three."""


@pytest.fixture(scope="module")
def materials(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    made = make_materials(tmp_path_factory.mktemp("study"), tiny_folder, steps=2)
    made._tasks["b"] = make_task("b", 3, 60)
    return made


@pytest.fixture(scope="module")
def embed(tiny_folder: Path) -> Callable[[tuple[Example, ...]], Numbers]:
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_folder), AutoModel.from_pretrained(tiny_folder).eval()

    @torch.no_grad()
    def embedded(examples: tuple[Example, ...]) -> Numbers:
        ids = [tokenizer(one.text, truncation=True, max_length=24)["input_ids"] for one in examples]
        return np.stack([plain_embedding(model, one).double().numpy() for one in ids])

    return embedded


def job_of(target: Slice, trials: int, name: str = "probe") -> ProbeJob:
    return ProbeJob((f"baselines/{target}/{name}",), {"trials": trials}, target, trials)


def fitted(materials: Materials, job: ProbeJob) -> dict[str, Any]:
    fit_probe(materials, job)
    manifest = materials.store.manifest(job.artifacts[0])
    assert manifest is not None
    return dict(manifest)


def by_hand(train: Numbers, labels: list[int], c: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=c, max_iter=1000).fit(train, labels)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_it_is_what_scikit_learn_makes_of_embeddings_by_hand(
    target: Slice, materials: Materials, embed: Callable[[tuple[Example, ...]], Numbers]
) -> None:
    data, task = materials.data(target), materials.task(target.task)
    train, held_out = embed(data.train), embed(data.validation)
    labels, right = ([one.label for one in part] for part in (data.train, data.validation))
    np.testing.assert_allclose(features(materials.backbone, data.train), train, atol=1e-6)

    manifest = fitted(materials, job_of(target, 15))
    models = {one["c"]: by_hand(train, labels, one["c"]) for one in manifest["tried"]}
    losses = {c: log_loss(right, model.predict_proba(held_out), labels=model.classes_) for c, model in models.items()}
    for one in manifest["tried"]:
        assert one["loss"] == pytest.approx(losses[one["c"]], rel=1e-3, abs=1e-4)
    best = models[manifest["c"]]
    assert losses[manifest["c"]] == pytest.approx(min(losses.values()), abs=1e-4)
    assert manifest["validation"]["accuracy"] == pytest.approx(best.score(held_out, right))
    assert manifest["trials"] == len(models) == 15 and manifest["seconds"] > 0
    assert manifest["steps"] == pytest.approx(sum(model.n_iter_[0] for model in models.values()), rel=0.3)

    scoring = ScoringJob((f"predictions/{target}/probe.parquet",), {}, target.task, f"baselines/{target}/probe")
    score_probes(materials, [scoring])
    table = materials.store.table(scoring.artifacts[0]).to_pydict()
    examples = task.splits["test"]
    likely = best.predict_proba(embed(examples))
    assert table["key"] == [one.key for one in examples]
    assert table["label"] == [task.labels[one.label] for one in examples]
    assert table["prediction"] == [task.labels[place] for place in likely.argmax(1)]
    np.testing.assert_allclose(table["score"], likely.max(1), atol=1e-3)
    told = materials.store.manifest(scoring.artifacts[0])
    assert told is not None and (told["metric"], told["examples"]) == ("accuracy", len(examples))
    assert (
        told["value"] == METRICS["accuracy"](table["label"], table["prediction"], table["score"]) > 1 / len(task.labels)
    )
    assert told["expert"] == f"baselines/{target}/probe"


def test_a_fit_made_again_is_the_same_to_the_last_byte(materials: Materials) -> None:
    one, other = (fitted(materials, job_of(TARGETS[1], 9, name)) for name in ("one", "other"))
    assert one["files"] == other["files"] and one["tried"] == other["tried"]


def test_validation_examples_choose_and_teach_nothing(materials: Materials) -> None:
    """The labels of the validation examples turned round: another strength is best, each fit is the same."""
    from dataclasses import replace

    before = fitted(materials, job_of(TARGETS[0], 1, "before"))
    data = materials.data(TARGETS[0])
    turned = tuple(replace(one, label=1 - one.label) for one in data.validation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(materials._data, TARGETS[0], type(data)(data.train, turned))
        after = fitted(materials, job_of(TARGETS[0], 1, "after"))
        swept_after = fitted(materials, job_of(TARGETS[0], 15, "swept"))
    assert after["files"] == before["files"] and after["validation"] != before["validation"]
    assert swept_after["c"] < 1e-3  # what it has learned is worth nothing: the stronger the penalty, the better


def test_predictions_of_several_probes_are_those_of_each(materials: Materials) -> None:
    several = []
    for seed in (0, 1):
        target = Slice("b", 4, seed)
        fitted(materials, job_of(target, 1))
        several.append(ScoringJob((f"together/{seed}.parquet",), {}, "b", f"baselines/{target}/probe"))
    score_probes(materials, several)
    for job in several:
        alone = ScoringJob((job.artifacts[0].replace("together", "alone"),), {}, "b", job.expert)
        score_probes(materials, [alone])
        one, other = (materials.store.table(found.artifacts[0]).to_pylist() for found in (job, alone))
        assert one == other


def test_the_search_comes_near_to_the_best_power_of_ten() -> None:
    for best in np.linspace(-6, 6, 41):
        found = swept(lambda power, best=best: abs(power - best), 15)  # type: ignore[misc]
        assert tuple(found)[: len(FIRST)] == FIRST and 11 <= len(found) <= 15
        assert min(abs(power - best) for power in found) <= 1 / 8 and all(abs(power) <= 6 for power in found)


def test_of_a_budget_the_first_are_tried() -> None:
    def loss(power: float) -> float:
        return abs(power - 1.3)

    whole = list(swept(loss, 99))
    assert whole == [0, 2, -2, 4, -4, 6, -6, 1, 3, 0.5, 1.5, 1.25, 1.75, 1.125, 1.375]
    for trials in range(1, 16):
        assert list(swept(loss, trials)) == whole[:trials]
    assert list(swept(lambda power: 1.0, 9)) == [*FIRST, -1, 1]  # of equals the first is best
    assert math.isclose(10 ** FIRST[-1], 1e-6)
