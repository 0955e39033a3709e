"""The methods that merge, and the controls: what each tries, of which experts, and what makes it anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakelanes import make_everything
from tinystudy import make_study

from pitune.config import load_config
from pitune.errors import PituneError
from pitune.interpolation.jobs import ControlJob, CrossfitJob, MergeJob, StackingJob, TuningJob, WeightSearchJob
from pitune.interpolation.merging import RULES
from pitune.methods import METHODS
from pitune.methods.merge import Merge
from pitune.plan import Node, Plan
from pitune.tasks.task import Slice

TARGET = Slice("beta", 2, 1)
NEAREST = ["experts/alpha@full#0", "experts/gamma@full#0"]
OWN = "experts/beta@2#1"
SWEEP = ("sweep.top_k=[1,2]", "sweep.temperature=[0.5,0.2]", "sweep.own=[trained,fresh]")
GRIDS: dict[str, list[dict[str, Any]]] = {
    "uniform": [{"top_k": 1}, {"top_k": 2}],
    "average_all": [{"top_k": 2, "own": own} for own in (1 / 3, 0.5, 0.0, 0.25, 0.75)],
    "similarity": [
        {"top_k": k, "temperature": heat, "own": own}
        for k in (1, 2)
        for heat in (0.5, 0.2)
        for own in ("trained", "fresh")
    ],
    "task_arithmetic": [
        {"top_k": k, "scale": scale} for scale in (0.3, 0.5, 0.2, 1.0, 0.1, 0.7, 0.4, 0.05) for k in (1, 2)
    ],
    "ties": [
        {"top_k": k, "density": density, "scale": scale}
        for density, scale in ((0.2, 1), (0.5, 1), (0.2, 1.5), (0.5, 1.5), (0.2, 2), (0.5, 0.5), (0.1, 1), (0.8, 1))
        for k in (1, 2)
    ],
    "dare_ties": [
        {"top_k": k, "density": density, "scale": scale}
        for density, scale in ((0.2, 1), (0.5, 1), (0.2, 0.5), (0.5, 0.5), (0.1, 1), (0.8, 1), (0.5, 1.5), (0.1, 0.5))
        for k in (1, 2)
    ],
    "lorahub": [
        {"top_k": k, "own": own, "penalty": penalty}
        for penalty in (0.05, 0.005, 0.5, 0.0)
        for own in (False, True)
        for k in (2, 1)
    ],
}
"""What each tries, given all the trials that it wants."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rivals")
    make_study(folder, methods=[*GRIDS, "fusion", "pi", "pi_farthest", "pi_random"])
    return folder


def made(folder: Path, study: Path, *overrides: str) -> Plan:
    """Return the plan of a study, everything made up; alpha is the nearest of beta, then gamma."""
    plan = Plan.of(load_config(folder / "study.yaml", [f"study={study}", *SWEEP, *overrides]))
    make_everything(plan)
    return plan


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return made(folder, folder / "study", "sweep.trials=null")


def node_of(plan: Plan, method: str) -> Node:
    node = METHODS[method].build(plan._builder, TARGET)
    assert node is not None and plan.nodes[node.name] is node and set(node.needs) <= plan.nodes.keys()
    return node


def tried(plan: Plan, method: str) -> list[Mapping[str, Any]]:
    job = node_of(plan, method).job
    assert isinstance(job, MergeJob | WeightSearchJob)
    return list(job.tried)


@pytest.mark.parametrize("method", GRIDS)
def test_the_first_of_its_settings_are_tried_in_order(method: str, plan: Plan, folder: Path, tmp_path: Path) -> None:
    assert tried(plan, method) == GRIDS[method][:8]  # as many as pi has trials: 2 · 2 · 2
    assert tried(made(folder, tmp_path / "a", "sweep.trials=3"), method) == GRIDS[method][:3]
    assert tried(made(folder, tmp_path / "b", "sweep.trials=99"), method) == GRIDS[method]


def test_every_merge_has_a_rule_that_there_is() -> None:
    merges = [method for method in METHODS.values() if isinstance(method, Merge)]
    assert {method.name for method in merges} == set(GRIDS) - {"lorahub"}
    assert {method.rule for method in merges} == set(RULES)


@pytest.mark.parametrize("method", GRIDS)
def test_a_merge_is_made_from_the_neighbours_it_takes(method: str, plan: Plan, folder: Path, tmp_path: Path) -> None:
    node = node_of(plan, method)
    assert (node.name, node.lane, node.stage) == (f"baselines/beta@2#1/{method}", "task", method)
    assert node.job.own == OWN and node.needs == (OWN, *NEAREST)  # type: ignore[attr-defined]
    assert [one.expert for one in node.job.neighbours] == NEAREST  # type: ignore[attr-defined]
    assert node.job.inputs["tried"] == GRIDS[method][:8] and node.make is not None and node.cost > 0
    assert [held[:2] for held in node.job.inputs["neighbours"]] == [
        [one.slice, one.similarity]
        for one in node.job.neighbours  # type: ignore[attr-defined]
    ]
    first = node_of(made(folder, tmp_path / "one", "sweep.trials=1"), method)
    assert len(first.job.neighbours) == GRIDS[method][0]["top_k"]  # type: ignore[attr-defined]
    other = node_of(made(folder, tmp_path / "rate", "training.few.learning_rate=0.02"), method)
    assert other.job.inputs["own"] != node.job.inputs["own"]  # through the own expert


def test_what_nothing_is_tuned_for_depends_on_no_tuning(folder: Path, plan: Plan, tmp_path: Path) -> None:
    other = made(
        folder, tmp_path, "sweep.trials=8", "interpolation.weights_learning_rate=0.3", "sweep.validate_every=1"
    )
    for method in GRIDS:
        assert node_of(other, method).job.fingerprint == node_of(plan, method).job.fingerprint
    for method in ("fusion", "pi", "pi_random", "pi_farthest"):
        assert node_of(other, method).job.fingerprint != node_of(plan, method).job.fingerprint


def test_lorahub_evaluates_as_often_as_pi_steps(plan: Plan) -> None:
    job = node_of(plan, "lorahub").job
    assert isinstance(job, WeightSearchJob)
    assert job.evaluations == 4 and job.rows == 3 * 4
    assert job.inputs["evaluations"] == 4 and job.inputs["rows"] == 12
    # Shots: 3 classes of 2, and as many to validate on.
    assert node_of(plan, "lorahub").cost == 8 * 6 / 2 + 8 * 4 * 6 / 2


def test_lorahub_takes_twenty_sources_at_most(folder: Path, tmp_path: Path) -> None:
    sources = ["alpha", *(f"gamma@full#{seed}" for seed in range(25))]
    plan = made(folder, tmp_path, f"sources=[{','.join(sources)}]", "sweep.trials=null")
    assert {setting["top_k"] for setting in tried(plan, "lorahub")} == {20, 1, 2}
    assert {setting["top_k"] for setting in tried(plan, "average_all")} == {26}


def test_fusion_is_pi_with_the_weights_alone(plan: Plan) -> None:
    one, other = node_of(plan, "fusion"), node_of(plan, "pi")
    assert isinstance(one.job, TuningJob) and isinstance(other.job, TuningJob)
    assert one.job.artifacts == ("baselines/beta@2#1/fusion", "sweeps/beta@2#1/fusion.parquet")
    assert other.job.artifacts == ("interpolations/beta@2#1", "sweeps/beta@2#1.parquet")
    assert (one.lane, one.needs, one.cost) == (other.lane, other.needs, other.cost)
    assert one.job.interpolation.train == "weights" and other.job.interpolation.train == "weights+experts"
    assert one.job.inputs["interpolation"] == {**other.job.inputs["interpolation"], "train": "weights"}
    assert other.job.inputs["interpolation"] == plan.config.interpolation.model_dump(mode="json")
    assert one.job.fingerprint != other.job.fingerprint
    assert (one.job.method, other.job.method) == ("fusion", "pi")


def test_what_is_stacked_brings_its_members_with_it(folder: Path, plan: Plan, tmp_path: Path) -> None:
    node = node_of(plan, "stacked")
    members = [node_of(plan, method) for method in ("single", "nearest", "pi")]
    assert isinstance(node.job, StackingJob) and node.needs == node.job.tried == tuple(one.name for one in members)
    assert node.job.inputs["members"] == [[one.name, one.job.fingerprint] for one in members]
    assert (node.name, node.lane, node.job.max_rank) == ("baselines/beta@2#1/stacked", "task", None)
    alone = made(folder, tmp_path, "methods=[stacked]", "interpolation.max_rank=3", "sweep.trials=1")
    node = node_of(alone, "stacked")
    assert isinstance(node.job, StackingJob) and node.job.max_rank == 3
    assert node.needs == (OWN, "transfer/beta@2#1/alpha@full#0", "interpolations/beta@2#1")
    scored = {name.split("/")[-1] for name in alone.nodes if name.startswith("predictions/beta@2#1/")}
    assert scored == {"stacked.parquet"}


def test_what_is_cross_fitted_waits_for_its_members_and_their_sources(folder: Path, plan: Plan, tmp_path: Path) -> None:
    node = node_of(plan, "crossfit")
    members = [node_of(plan, method) for method in ("single", "nearest", "pi")]
    assert isinstance(node.job, CrossfitJob) and node.job.tried == tuple(one.name for one in members)
    assert node.needs == (*node.job.tried, *NEAREST) and node.job.folds == 2
    assert (node.name, node.lane, node.job.slice) == ("baselines/beta@2#1/crossfit", "task", TARGET)
    assert node.job.inputs["members"] == [[one.name, one.job.fingerprint] for one in members]
    more = made(folder, tmp_path, "methods=[crossfit]", "sweep.folds=4", "targets=[beta@2#1,beta@full#0]")
    node = node_of(more, "crossfit")
    assert isinstance(node.job, CrossfitJob) and node.job.folds == node.job.inputs["folds"] == 4
    full = more.nodes["baselines/beta@full#0/crossfit"].job
    assert isinstance(full, CrossfitJob) and full.folds == full.inputs["folds"] == 0
    pi = node_of(plan, "pi").job
    assert more.nodes["interpolations/beta@2#1"].job.inputs["sweep"] == pi.inputs["sweep"]  # folds are not pi's


def test_more_folds_than_shots_are_one_line_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    def planned(*overrides: str) -> Plan:
        return Plan.of(load_config(folder / "study.yaml", [f"study={tmp_path}", "targets=[beta@2#1]", *overrides]))

    shots = 2 * len(planned("methods=[single]", "sweep.folds=100").facts.task("beta").labels)
    planned("methods=[crossfit]", f"sweep.folds={shots}")
    says = rf"^sweep.folds: found {shots + 1}, target beta@2#1 has {shots} shots in all; use at most {shots}$"
    with pytest.raises(PituneError, match=says):
        planned("methods=[crossfit]", f"sweep.folds={shots + 1}")


def test_the_controls_are_made_from_pi_and_are_no_rivals(plan: Plan) -> None:
    pi = node_of(plan, "pi")
    for method, experts in (("pi_farthest", NEAREST[::-1]), ("pi_random", NEAREST)):
        node = node_of(plan, method)
        assert isinstance(node.job, ControlJob) and isinstance(pi.job, TuningJob)
        assert (node.name, node.lane) == (f"controls/beta@2#1/{method[3:]}", "task")
        assert [one.expert for one in node.job.neighbours] == experts
        assert set(node.needs) == {pi.name, OWN, *NEAREST}
        assert node.job.of == pi.name and node.job.inputs["of"] == pi.job.fingerprint
        assert node.job.recipe == pi.job.recipe and node.job.interpolation == pi.job.interpolation
        assert node.job.randomized is (method == "pi_random")
    assert {method.name for method in METHODS.values() if method.control} == {"pi_farthest", "pi_random"}


def test_a_control_brings_pi_with_it(folder: Path, tmp_path: Path) -> None:
    plan = made(folder, tmp_path, "methods=[pi_random]")
    assert "interpolations/beta@2#1" in plan.nodes and "predictions/beta@2#1/pi.parquet" not in plan.nodes
    assert "predictions/beta@2#1/pi_random.parquet" in plan.nodes


def test_the_farthest_are_the_nearest_the_other_way_round(plan: Plan) -> None:
    builder = plan._builder
    assert builder.others(TARGET) == 2
    assert builder.farthest(TARGET, 2) == builder.neighbours(TARGET, 2)[::-1]
    assert builder.farthest(TARGET, 1) == builder.neighbours(TARGET, 2)[1:]
