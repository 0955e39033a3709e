"""The search: the order of its trials, what is written down of them, and what is committed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher
from tinymodel import random_expert
from tinystudy import make_materials

from pitune.errors import PituneError
from pitune.experts.checkpoint import to_files
from pitune.interpolation.jobs import Neighbour, TuningJob
from pitune.interpolation.settings import InterpolationSettings, SweepSettings
from pitune.interpolation.tune import Validation
from pitune.runtime.search import OneByOne, SearchLane
from pitune.runtime.settings import RuntimeSettings
from pitune.runtime.trials import Point, points, read_record, run_trial
from pitune.store import Store
from pitune.tasks.task import Slice
from pitune.training.recipe import Recipe

FEW = Recipe(steps=6, batch_size=4, learning_rate=0.02)
SWEEP = SweepSettings(top_k=(1,), validate_every=2)


@dataclass(frozen=True)
class Node:
    job: TuningJob
    cost: float = 1.0
    make: None = None
    together: None = None


def make_job(
    name: str, neighbour: str = "beta@full#0", sweep: SweepSettings = SWEEP, steps: int = 6, method: str = "pi"
) -> TuningJob:
    near = (Neighbour(neighbour, 0.5, f"experts/{neighbour}"),)
    slice_ = Slice.parse(name)
    artifacts = (f"interpolations/{name}", f"sweeps/{name}.parquet")
    recipe = FEW.model_copy(update={"steps": steps})
    settings = InterpolationSettings()
    return TuningJob(artifacts, {"makes": name}, slice_, near, f"experts/{name}", recipe, settings, sweep, method)


def test_every_combination_is_a_trial_once() -> None:
    sweep = SweepSettings(top_k=(1, 2, 1), temperature=(0.5, 1.0), own=("fresh",), rate=(1, 2, 1))
    found = points(make_job("alpha@2#0", sweep=sweep))
    assert [(point.top_k, point.temperature, point.rate) for point in found] == [
        *((1, 0.5, 1.0), (1, 0.5, 2.0), (1, 1.0, 1.0), (1, 1.0, 2.0)),
        *((2, 0.5, 1.0), (2, 0.5, 2.0), (2, 1.0, 1.0), (2, 1.0, 2.0)),
    ]
    assert len({point.artifact for point in found}) == sweep.combinations == 8


def test_temperatures_that_differ_little_have_records_of_their_own() -> None:
    sweep = SweepSettings(temperature=(0.1234567, 0.1234568))
    found = points(make_job("alpha@2#0", sweep=sweep))
    assert len({point.record for point in found}) == len({point.artifact for point in found}) == len(found) == 4


def test_trials_of_two_methods_for_a_target_lie_apart() -> None:
    (one, _), (other, _) = (points(make_job("alpha@2#0", method=method)) for method in ("pi", "fusion"))
    assert one.name == other.name and one.artifact != other.artifact and one.record != other.record


def test_a_target_has_one_trial_at_a_time_and_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SearchLane, "_go_on", lambda self: None)
    lane: SearchLane[Node] = SearchLane(None, RuntimeSettings(), str(tmp_path))
    sweep = SweepSettings(top_k=(1, 2, 3), own=("fresh",))
    lane.add([Node(make_job(name, sweep=sweep)) for name in ("alpha@2#0", "beta@2#0")])
    searcher = OneByOne(lane)

    def name(suggested: object) -> str:
        assert isinstance(suggested, dict)
        return f"{suggested['point'].job.slice} {suggested['point'].top_k}"

    assert name(searcher.suggest("a")) == "alpha@2#0 1"
    assert name(searcher.suggest("b")) == "beta@2#0 1"
    assert searcher.suggest("c") is None  # both have one under way
    lane.ended("b", None)
    assert name(searcher.suggest("d")) == "beta@2#0 2"
    assert lane.running() == {"interpolations/alpha@2#0": 0.0, "interpolations/beta@2#0": pytest.approx(1 / 3)}
    lane.ended("d", "it failed")  # a failed one frees its target too
    assert name(searcher.suggest("e")) == "beta@2#0 3"
    lane.ended("e", None)
    assert searcher.suggest("f") is None
    [(node, error)] = lane.finished()
    assert str(node.job.slice), error == ("beta@2#0", "it failed")
    lane.ended("a", None)
    assert name(searcher.suggest("g")) == "alpha@2#0 2"
    lane.add([Node(make_job("gamma@2#0"))])  # while the search is under way
    assert name(searcher.suggest("h")) == "gamma@2#0 1"
    assert searcher.suggest("i") is None
    lane.ended("g", None)
    assert name(searcher.suggest("j")) == "alpha@2#0 3"
    lane.ended("h", None)
    assert name(searcher.suggest("k")) == "gamma@2#0 1"  # with the other start
    assert searcher.suggest("l") == Searcher.FINISHED


def test_a_trial_goes_on_from_what_is_written_down(tiny_folder: Path, tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    materials = make_materials(tmp_path, tiny_folder, steps=6)
    job, store = make_job("a@2#0", neighbour="b@2#0"), materials.store
    for name in ("a@2#0", "b@2#0"):
        expert = random_expert(materials.kind, materials.backbone, seed=len(name))
        store.commit(f"experts/{name}", to_files(materials.kind, expert, "tiny"), "mark")
    point = Point(job, 1, 1.0, "trained", 1.0)
    run_trial(materials, point, told.append)
    whole, merged = list(told), store.read(point.artifact, "adapter_model.safetensors")
    assert [score["step"] for score in whole] == [2, 4, 6]
    assert read_record(store, point) == whole

    told.clear()
    run_trial(materials, point, told.append)  # finished: told again, nothing computed
    assert told == whole

    told.clear()
    store.discard(point.artifact)
    store.commit(point.record, {"": json.dumps(whole[:1]).encode()}, job.fingerprint)  # killed after its first score
    run_trial(materials, point, told.append)
    assert told[0] == whole[0]
    for again, before in zip(told, whole, strict=True):
        assert {**again, "seconds": 0} == {**before, "seconds": 0}
    assert store.read(point.artifact, "adapter_model.safetensors") == merged


def test_a_record_of_other_inputs_does_not_count(tmp_path: Path) -> None:
    store, job = Store(str(tmp_path)), make_job("alpha@2#0")
    point = Point(job, 1, 1.0, "fresh", 1.0)
    assert read_record(store, point) == []
    store.commit(point.record, {"": b'[{"step": 1}]'}, job.fingerprint)
    assert read_record(store, point) == [{"step": 1}]
    store.commit(point.record, {"": b'[{"step": 1}]'}, "another")
    assert read_record(store, point) == []


# --- on Ray: toy trials whose scores are made up -----------------------------------------------------------------


@dataclass(frozen=True)
class Toys:
    """Materials of which only the store is real; the scores come from a trial's temperature."""

    store: Store


@dataclass(frozen=True)
class ToyTuned:
    validation: Validation


def toy_attempt(toys: Any, job: TuningJob, k: int, temperature: float, own: str, rate: float, report: Any) -> ToyTuned:
    if temperature == 13.0:
        raise PituneError(f"{job.slice}: unlucky")
    for step in range(job.sweep.validate_every, job.recipe.steps + 1, job.sweep.validate_every):
        time.sleep(0.02)
        report(step, Validation(temperature / step, 0.5))
    return ToyTuned(Validation(temperature / job.recipe.steps, 0.5))


def toy_files(toys: Any, job: TuningJob, k: int, tuned: ToyTuned) -> tuple[dict[str, bytes], float]:
    return {"file.json": json.dumps(tuned.validation.loss).encode()}, 0.0


class ToySearch(SearchLane[Node]):
    """A search whose trials are toys, in the workers too."""

    def _fit(self) -> None:
        import pitune.runtime.search as module

        whole = module.run_trial

        def run_toy(materials: Any, point: Point, tell: Any) -> None:
            import pitune.runtime.trials as trials

            trials.attempt, trials.interpolation_files = toy_attempt, toy_files  # type: ignore[assignment]
            trials.run_trial(materials, point, tell)

        module.run_trial = run_toy
        try:
            super()._fit()
        finally:
            module.run_trial = whole


def wait_for(lane: ToySearch, count: int, seconds: float = 120.0) -> dict[str, str | None]:
    ended: dict[str, str | None] = {}
    deadline = time.monotonic() + seconds
    while len(ended) < count and time.monotonic() < deadline:
        ended |= {str(node.job.slice): error for node, error in lane.finished()}
        time.sleep(0.05)
    return ended


@pytest.mark.slow
def test_each_target_gets_the_best_of_its_trials(ray_session: None, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "study"))
    sweep = SweepSettings(top_k=(1,), temperature=(1.0, 4.0, 0.5, 2.0), own=("fresh",), validate_every=2)
    unlucky = SweepSettings(temperature=(1.0, 13.0), own=("fresh",), validate_every=2)
    jobs = [make_job("alpha@2#0", sweep=sweep, steps=8), make_job("beta@2#0", sweep=sweep, steps=8)]
    bad = make_job("gamma@2#0", sweep=unlucky, steps=8)
    with ToySearch(Toys(store), RuntimeSettings(), str(tmp_path / "tune")) as lane:
        lane.add([Node(jobs[0]), Node(bad)])
        while not lane.running():
            time.sleep(0.05)
        lane.add([Node(jobs[1])])  # one more, while it runs
        assert lane.unfinished() == 3
        assert wait_for(lane, 3) == {"alpha@2#0": None, "beta@2#0": None, "gamma@2#0": "gamma@2#0: unlucky"}
        assert lane.unfinished() == 0
    assert store.manifest(bad.artifacts[0]) is None
    for job in jobs:
        manifest = store.manifest(job.artifacts[0])
        assert manifest is not None
        assert [manifest[name] for name in ("top_k", "temperature", "own", "rate")] == [1, 0.5, "fresh", 1.0]
        assert (manifest["trials"], manifest["steps"]) == (4, 8 + 2 + 8 + 2)
        assert manifest["fingerprint"] == job.fingerprint and manifest["members"] == ["beta@full#0", str(job.slice)]
        rows = store.table(job.artifacts[1]).to_pylist()
        steps = {name: [row["step"] for row in rows if row["temperature"] == name] for name in (1.0, 4.0, 0.5, 2.0)}
        # One after another: 4.0 and 2.0 are worse than the better half before them, at the first rung.
        assert steps == {1.0: [2, 4, 6, 8], 4.0: [2], 0.5: [2, 4, 6, 8], 2.0: [2]}
        assert {row["temperature"] for row in rows if row["chosen"]} == {0.5}
        assert not store.is_current(points(job)[0].record, job.fingerprint)  # nothing is left of the trials


@pytest.mark.slow
def test_a_search_that_is_left_stops_at_once_and_goes_on_where_it_was(ray_session: None, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "study"))
    sweep = SweepSettings(temperature=(1.0, 0.5), own=("fresh",), validate_every=2)
    job = make_job("alpha@2#0", sweep=sweep, steps=4000)
    first = points(job)[0]
    lane = ToySearch(Toys(store), RuntimeSettings(), str(tmp_path / "tune"))
    with pytest.raises(KeyboardInterrupt), lane:
        lane.add([Node(job)])
        while len(read_record(store, first)) < 2:
            time.sleep(0.05)
        began = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - began < 20
    assert lane._thread is not None and not lane._thread.is_alive()
    assert len(read_record(store, first)) >= 2
