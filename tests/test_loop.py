"""The study's loop, on lanes that compute nothing: what goes where, when, and what errors stop."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakelanes import Opener
from tinystudy import make_study

from pitune import study as study_module
from pitune.config import load_config
from pitune.errors import PituneError
from pitune.progress import Stage
from pitune.results import TRANSFER
from pitune.study import Study, shown_name


class Told:
    """Remembers what a study tells of its progress."""

    def __init__(self) -> None:
        self.first: dict[str, Stage] = {}
        self.last: dict[str, Stage] = {}

    def show(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            self.first.setdefault(stage.name, stage)
            self.last[stage.name] = stage
            assert stage.there <= stage.done <= stage.total


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no Ray, and draw no report of what is made up."""
    monkeypatch.setattr("pitune.report.write_report", lambda store: None)
    monkeypatch.setattr(study_module, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(study_module, "LOOK_SECONDS", 0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_study(tmp_path)


def test_each_node_is_made_in_its_lane_and_what_can_go_on_goes_on(path: Path) -> None:
    opener, told = Opener(), Told()
    study = Study(load_config(path), opener)
    study.run(told)
    assert opener.wanted == {"driver", "gang", "task", "search"}
    lanes = {name: lane for lane, name in opener.log}
    assert {lanes["experts/alpha@2#0"], lanes["transfer/alpha@2#0/beta@full#0"]} == {"gang"}
    assert lanes["interpolations/alpha@2#0"] == "search" and lanes["baselines/alpha@2#0/uniform"] == "task"
    assert lanes["graph.parquet"] == "task" and "sweeps/alpha@2#0.parquet" not in lanes
    names = [name for _, name in opener.log]
    assert len(names) == len(set(names))
    first_embedding = next(i for i, name in enumerate(names) if name.startswith("embeddings/"))
    last_expert = max(i for i, name in enumerate(names) if name.startswith("experts/"))
    assert first_embedding < last_expert  # no barrier between the stages
    assert all(stage.done == stage.total and stage.there == 0 for stage in told.last.values())
    assert told.last.keys() == study.plan.stages().keys()
    assert not study.plan.lanes() and study.store.manifest("results.parquet")


def test_a_goal_is_made_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(store: object) -> None:
        raise AssertionError("the report is not part of the goal")

    monkeypatch.setattr("pitune.report.write_report", nothing)
    config, opener, told = load_config(path, ["transfer={}"]), Opener(), Told()
    study = Study(config, opener, goal=TRANSFER)
    study.run(told)
    assert opener.wanted == {"driver", "gang", "task"}
    assert told.last.keys() == {"experts", "transfer", "predictions"}
    assert study.store.table(TRANSFER).num_rows == 6 and study.store.manifest("graph.parquet") is None
    opener = Opener()
    Study(config, opener, goal=TRANSFER).run(Told())
    assert opener.wanted == set() and not opener.log


def test_run_again_it_opens_nothing_and_makes_nothing(path: Path) -> None:
    Study(load_config(path), Opener()).run(Told())
    opener, told = Opener(), Told()
    study = Study(load_config(path), opener)
    before = {artifact: manifest["written"] for artifact, manifest in study.store.artifacts().items()}
    study.run(told)
    assert opener.wanted == set() and not opener.log
    assert told.last["experts"] == Stage("experts", 5, 5, 5.0, [])
    assert {artifact: manifest["written"] for artifact, manifest in study.store.artifacts().items()} == before


def test_an_error_stops_only_what_depends_on_it(path: Path) -> None:
    opener = Opener({"experts/beta@2#1": "the loss is nan", "predictions/alpha/zero_shot.parquet": "no memory"})
    study = Study(load_config(path), opener)
    with pytest.raises(PituneError) as told:
        study.run(Told())
    assert str(told.value).startswith(("experts: failed", "predictions: failed")) and "(and 1 more)" in str(told.value)
    assert "\n" not in str(told.value)
    made = set(study.store.artifacts())
    assert {"experts/alpha@2#0", "predictions/alpha@2#0/single.parquet", "slices/beta@2#1.parquet"} <= made
    assert not {"graph.parquet", "results.parquet", "predictions/beta@2#1/single.parquet"} & made
    Study(load_config(path), Opener()).run(Told())  # what failed is tried again
    assert study.store.manifest("results.parquet")


def test_the_first_error_is_named_as_people_know_it(path: Path) -> None:
    study = Study(load_config(path), Opener({"experts/beta@2#1": "the loss is nan"}))
    with pytest.raises(PituneError, match=r"^experts: failed, .*: beta@2#1: the loss is nan$"):
        study.run(Told())
    assert shown_name("graph.parquet") == "graph.parquet" and shown_name("predictions/a@2#0/pi.parquet") == "a@2#0/pi"


def test_old_results_do_not_stand_beside_new_artifacts(path: Path) -> None:
    Study(load_config(path), Opener()).run(Told())
    changed = Study(load_config(path, ["interpolation.granularity=global"]), Opener({"interpolations/alpha@2#0": "no"}))
    with pytest.raises(PituneError):
        changed.run(Told())
    assert changed.store.manifest("results.parquet") is None
    kept = Study(load_config(path), Opener())
    kept.run(Told())
    assert kept.store.manifest("results.parquet") is not None


def test_what_is_deleted_is_made_again(path: Path) -> None:
    first = Study(load_config(path), Opener())
    first.run(Told())
    before = set(first.store.artifacts())
    for artifact in ("embeddings/alpha@2#0.parquet", "interpolations/alpha@2#0", "graph.parquet"):
        first.store.discard(artifact)
    opener = Opener()
    Study(load_config(path), opener).run(Told())
    assert {name for _, name in opener.log} == {
        *("embeddings/alpha@2#0.parquet", "interpolations/alpha@2#0", "graph.parquet")
    }
    assert set(first.store.artifacts()) == before


def test_a_second_process_is_told_so(path: Path) -> None:
    study = Study(load_config(path), Opener())
    with study.store.lock(), pytest.raises(PituneError, match="another pitune process") as told:
        Study(load_config(path), Opener()).run(Told())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("expert.targets=[nowhere]", "expert.targets: nothing in the backbone"),
        ("targets=[beta@40#0]", "slice beta@40#0"),
        ("backbone.uri=/nowhere", "/nowhere"),
        ("tasks.beta.label=colour", "colour"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(path: Path, setting: str, says: str) -> None:
    with pytest.raises(PituneError, match=says) as told:
        Study(load_config(path, [setting]), Opener()).run(Told())
    assert "\n" not in str(told.value)
    assert not (path.parent / "study").exists()
