"""The methods: what each builds for a target; and a new one, which is one class and one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakelanes import make_everything
from tinystudy import make_study

from pitune.config import load_config
from pitune.interpolation.jobs import MergeJob, Neighbour, TuningJob
from pitune.methods import METHODS, Method
from pitune.plan import Builder, Node, Plan
from pitune.plan.node import Lane
from pitune.results import wrong_scores
from pitune.tasks.task import Slice
from pitune.training.pack import ExpertJob

TARGET = Slice("beta", 2, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    make_study(folder)
    return folder


def planned(folder: Path, study: Path, *overrides: str) -> Plan:
    return Plan.of(load_config(folder / "study.yaml", [f"study={study}", *overrides]))


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    """A study of which everything is made, if only made up; alpha is the nearest of beta, then gamma."""
    plan = planned(folder, folder / "study", "methods=null", "sweep.trials=null")
    make_everything(plan)
    return plan


@pytest.mark.parametrize("name", METHODS)
def test_a_method_builds_a_node_of_the_plan_and_the_same_one_again(plan: Plan, name: str) -> None:
    method = METHODS[name]
    assert isinstance(method, Method) and method.name == name
    for target in plan.facts.targets:
        node = method.build(plan._builder, target)
        assert node is None or plan.nodes[node.name] is node
        assert method.build(plan._builder, target) is node


def node_of(plan: Plan, name: str, lane: Lane) -> Node:
    node = plan.nodes[name]
    assert node.lane == lane and set(node.needs) <= plan.nodes.keys()
    return node


def test_nearest_starts_from_the_nearest_expert_and_sees_the_same_rows(plan: Plan) -> None:
    node = node_of(plan, "transfer/beta@2#1/alpha@full#0", "gang")
    own = plan.nodes["experts/beta@2#1"].job
    assert isinstance(node.job, ExpertJob) and isinstance(own, ExpertJob)
    assert node.job.start == "experts/alpha@full#0" and node.needs == ("experts/alpha@full#0",)
    assert (node.job.name, node.job.data, node.job.recipe) == (own.name, own.data, own.recipe)
    assert node.job.inputs["start"] == plan.nodes["experts/alpha@full#0"].job.fingerprint
    assert {**node.job.inputs, "start": "common"} == own.inputs


def test_uniform_and_pi_have_the_neighbours_nearest_first_and_the_own_expert(plan: Plan) -> None:
    average = node_of(plan, "baselines/beta@2#1/uniform", "task")
    tuned = node_of(plan, "interpolations/beta@2#1", "search")
    assert isinstance(average.job, MergeJob) and isinstance(tuned.job, TuningJob)
    for job in (average.job, tuned.job):
        assert [near.expert for near in job.neighbours] == ["experts/alpha@full#0", "experts/gamma@full#0"]
        assert job.slice == TARGET and job.own == "experts/beta@2#1"
        values = [[near.slice, near.similarity] for near in job.neighbours]
        assert [held[:2] for held in job.inputs["neighbours"]] == values
    assert average.job.tried == ({"top_k": 1}, {"top_k": 2}) and average.job.rule == "average"
    assert tuned.job.artifacts[1] == "sweeps/beta@2#1.parquet"
    assert set(tuned.needs) == {"experts/alpha@full#0", "experts/gamma@full#0", "experts/beta@2#1"}
    assert "recipe" not in average.job.inputs  # nothing is tuned: no learning rate changes it


class WithNearest(Method):
    """One expert of the shots and of the nearest source, scored under its own name."""

    name = "with_nearest"
    title = "with nearest"
    note = "one expert of the target's shots and the nearest source's data"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        nearest: Neighbour
        (nearest,) = plan.neighbours(target, 1)
        data = ((target, 0.75), (Slice.parse(nearest.slice), 0.25))
        return plan.expert(data, artifact=f"rivals/{target}/with_nearest", stage=self.name)


class Twin(Method):
    """The same as single: what it scores is scored once."""

    name, title, note, sees = "twin", "twin", "single by another name", "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        return plan.expert(target)


def test_a_new_method_is_a_row_of_the_results(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in (WithNearest(), Twin()):
        monkeypatch.setitem(METHODS, method.name, method)
    plan = planned(folder, tmp_path / "study", "methods=[zero_shot,single,with_nearest,twin]")
    made: Sequence[str] = make_everything(plan)
    job: Any = plan.nodes["rivals/beta@2#1/with_nearest"].job
    assert job.data == ((TARGET, 0.75), (Slice("alpha", None, 0), 0.25)) and job.name == "beta@2#1 + alpha@full#0"
    assert job.inputs["data"] == [["beta@2#1", 0.75], ["alpha@full#0", 0.25]]
    assert set(job.inputs["tasks"]) == {"alpha", "beta"} and job.inputs["validation_examples"] == 20
    rows = {(row["slice"], row["method"]): row for row in plan.store.table("results.parquet").to_pylist()}
    assert rows["beta@2#1", "with_nearest"]["prediction"] == "predictions/beta@2#1/with_nearest.parquet"
    assert rows["beta@2#1", "twin"]["prediction"] == "predictions/beta@2#1/single.parquet"
    assert "predictions/beta@2#1/twin.parquet" not in made
    assert len(rows) == 2 * 4 and not wrong_scores(plan.store)


def test_two_methods_cannot_make_one_artifact_in_two_ways(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path / "study")
    with pytest.raises(ValueError, match=r"experts/beta@2#1: two nodes"):
        plan._builder.expert(((TARGET, 0.5), (Slice("alpha", None, 0), 0.5)), artifact="experts/beta@2#1")
