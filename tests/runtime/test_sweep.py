"""The order of the sweep's trials, and what is written down of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray.tune.search import Searcher
from tinymodel import random_expert
from tinystudy import make_materials

from pitune.experts.checkpoint import to_files
from pitune.interpolation.jobs import Neighbour, TuningJob
from pitune.interpolation.settings import InterpolationSettings, SweepSettings
from pitune.runtime.sweep import OneByOne, Point, points, read_record, run_trial
from pitune.store import Store
from pitune.tasks.task import Slice
from pitune.training.recipe import Recipe

FEW = Recipe(steps=6, batch_size=4, learning_rate=0.02)
SWEEP = SweepSettings(top_k=(1,), validate_every=2)


def make_target(name: str, neighbour: str = "beta@full#0", sweep: SweepSettings = SWEEP) -> TuningJob:
    near = (Neighbour(neighbour, 0.5, f"experts/{neighbour}"),)
    slice_ = Slice.parse(name)
    return TuningJob((name,), {"makes": name}, slice_, near, f"experts/{name}", FEW, InterpolationSettings(), sweep)


def test_every_combination_is_a_trial_once() -> None:
    sweep = SweepSettings(top_k=(1, 2, 1), temperature=(0.5, 1.0), own=("fresh",))
    found = points(make_target("alpha@2#0", sweep=sweep))
    assert [(point.top_k, point.temperature) for point in found] == [(1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)]
    assert len({point.artifact for point in found}) == 4


def test_a_target_has_one_trial_at_a_time_and_others_go_on() -> None:
    first, second = make_target("alpha@2#0"), make_target("beta@2#0")
    trials = {str(target.slice): [Point(target, k, 1.0, "fresh") for k in (1, 2, 3)] for target in (first, second)}
    searcher = OneByOne(trials)

    def name(suggested: object) -> str:
        assert isinstance(suggested, dict)
        return f"{suggested['point'].target.slice} {suggested['point'].top_k}"

    assert name(searcher.suggest("a")) == "alpha@2#0 1"
    assert name(searcher.suggest("b")) == "beta@2#0 1"
    assert searcher.suggest("c") is None  # both have one under way
    searcher.on_trial_complete("b")
    assert name(searcher.suggest("d")) == "beta@2#0 2"
    searcher.on_trial_complete("d", error=True)  # a failed one frees its target too
    assert name(searcher.suggest("e")) == "beta@2#0 3"
    searcher.on_trial_complete("e")
    assert searcher.suggest("f") is None
    searcher.on_trial_complete("a")
    assert name(searcher.suggest("g")) == "alpha@2#0 2"
    searcher.on_trial_complete("g")
    assert name(searcher.suggest("h")) == "alpha@2#0 3"
    assert searcher.suggest("i") == Searcher.FINISHED


def test_a_trial_goes_on_from_what_is_written_down(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, float]] = []
    monkeypatch.setattr("pitune.runtime.sweep.tune.report", reported.append)
    materials = make_materials(tmp_path, tiny_folder, steps=6)
    target, store = make_target("a@2#0", neighbour="b@2#0"), materials.store
    for name in ("a@2#0", "b@2#0"):
        expert = random_expert(materials.kind, materials.backbone, seed=len(name))
        store.commit(f"experts/{name}", to_files(materials.kind, expert, "tiny"), "mark")
    point = Point(target, 1, 1.0, "trained")
    run_trial(materials, point)
    whole, merged = list(reported), store.read(point.artifact, "adapter_model.safetensors")
    assert [score["step"] for score in whole] == [2, 4, 6]
    assert read_record(store, point) == whole

    reported.clear()
    run_trial(materials, point)  # finished: told again, nothing computed
    assert reported == whole

    reported.clear()
    store.discard(point.artifact)
    store.commit(point.record, {"": json.dumps(whole[:1]).encode()}, target.fingerprint)  # killed after its first score
    run_trial(materials, point)
    assert reported[0] == whole[0]
    for again, before in zip(reported, whole, strict=True):
        assert {**again, "seconds": 0} == {**before, "seconds": 0}
    assert store.read(point.artifact, "adapter_model.safetensors") == merged


def test_a_record_of_other_inputs_does_not_count(tmp_path: Path) -> None:
    store, target = Store(str(tmp_path)), make_target("alpha@2#0")
    point = Point(target, 1, 1.0, "fresh")
    assert read_record(store, point) == []
    store.commit(point.record, {"": b'[{"step": 1}]'}, target.fingerprint)
    assert read_record(store, point) == [{"step": 1}]
    store.commit(point.record, {"": b'[{"step": 1}]'}, "another")
    assert read_record(store, point) == []
