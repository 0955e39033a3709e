"""Zero-shot transfer: experts of other tasks alone, ranked by label texts; the target's data changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakelanes import make, make_everything
from tinymerges import NEAR, materials_with_experts
from tinymodel import EVERY_KIND, random_expert
from tinystudy import make_study

from pitune.backbones.text import TextBackbone
from pitune.config import load_config
from pitune.embedding.features import mean_feature
from pitune.experts import Bank, ExpertKind
from pitune.experts.checkpoint import to_files
from pitune.interpolation.jobs import AverageJob
from pitune.interpolation.merging import added_up, average
from pitune.materials import Materials
from pitune.plan import Plan
from pitune.training.pack import ExpertJob

ROWS = ("zero_shot_nearest", "zero_shot_uniform", "zero_shot_similarity")
METHODS = f"methods=[zero_shot,{','.join(ROWS)}]"
SWEEP = ("sweep.top_k=[2,1]", "sweep.temperature=[0.5,0.1]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero_shot")
    make_study(folder, targets=["alpha@2#0", "alpha@2#1", "alpha@full#0", "beta@2#1"])
    return folder


def planned(folder: Path, study: Path, *overrides: str) -> Plan:
    return Plan.of(load_config(folder / "study.yaml", [f"study={study}", METHODS, *SWEEP, *overrides]))


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    """A study of which everything is made up; alpha is the nearest of beta, but gamma is by the label texts."""
    plan = planned(folder, folder / "study")
    make_everything(plan)
    return plan


def job_of(plan: Plan, task: str, method: str) -> AverageJob:
    job = plan.nodes[f"baselines/{task}/{method}"].job
    assert isinstance(job, AverageJob)
    return job


def test_sources_are_ranked_by_label_texts_and_weighed_by_what_the_sweep_begins_with(plan: Plan) -> None:
    assert job_of(plan, "beta", "zero_shot_nearest").weights == (1.0,)
    assert job_of(plan, "beta", "zero_shot_uniform").weights == (0.5, 0.5)
    shares = [math.exp(similarity / 0.5) for similarity in (0.2, 0.1)]  # of gamma and alpha, by the made-up graph
    expected = [share / sum(shares) for share in shares]
    assert job_of(plan, "beta", "zero_shot_similarity").weights == pytest.approx(expected, abs=1e-9)
    for method in ROWS:
        job = job_of(plan, "beta", method)
        near = ["gamma@full#0", "alpha@full#0"][: len(job.weights)]
        assert [one.slice for one in job.neighbours] == near
        assert job.inputs["sources"] == [
            [name, weight, plan.nodes[f"experts/{name}"].job.fingerprint]
            for name, weight in zip(near, job.weights, strict=True)
        ]


@pytest.mark.parametrize("method", ROWS)
def test_no_expert_of_the_target_is_in_it(plan: Plan, method: str) -> None:
    """Not the full one either, though it is a source of the study and a target."""
    for task in ("alpha", "beta"):
        node = plan.nodes[f"baselines/{task}/{method}"]
        assert (node.lane, node.stage) == ("task", method)
        assert node.needs and not any(need.startswith(f"experts/{task}@") for need in node.needs)


def test_the_targets_of_a_task_share_one_expert_and_one_score(plan: Plan) -> None:
    for row in plan.store.table("results.parquet").to_pylist():
        if row["method"] in ROWS:
            assert row["prediction"] == f"predictions/{row['task']}/{row['method']}.parquet"
            assert (row["trials"], row["steps"]) == (1, 0)
    assert plan.stages()["zero_shot_uniform"] == (2, 2) and not any("@" in name for name in averages(plan))


def averages(plan: Plan) -> list[str]:
    return [name for name, node in plan.nodes.items() if isinstance(node.job, AverageJob)]


def test_more_targets_of_a_task_make_none_of_it_anew(folder: Path, tmp_path: Path) -> None:
    make_everything(planned(folder, tmp_path / "study", "targets=[beta@2#1]"))
    more = planned(folder, tmp_path / "study", "targets=[beta@4#0,beta@2#1,beta@full#0]")
    made = make_everything(more)
    assert "graph.parquet" in made and not any(name.startswith(("baselines/", "predictions/")) for name in made)


def test_a_graph_of_one_similarity_has_the_label_texts_too_where_a_row_asks_for_them(
    folder: Path, tmp_path: Path
) -> None:
    def columns(*overrides: str) -> list[str]:
        graph: Any = planned(folder, tmp_path / "study", "embedding.all=false", *overrides).nodes["graph.parquet"].job
        return [str(column) for column in graph.columns]

    assert columns() == ["empirical_cosine_per_tensor", "labels_cosine"]
    assert columns("methods=[zero_shot,single]") == ["empirical_cosine_per_tensor"]
    assert columns("embedding.similarity=labels") == ["labels_cosine"]


# --- the expert ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.5), (1 / 3, 1 / 3, 1 / 3), (0.6, 0.3, 0.1)])
def test_it_is_the_average_in_the_space_of_updates(
    kind: ExpertKind, weights: tuple[float, ...], tiny: TextBackbone
) -> None:
    """The reference adds up task vectors one by one: of a LoRA the products B·A."""
    start, experts = kind.start(tiny), [random_expert(kind, tiny, seed) for seed in range(len(weights))]
    found = added_up(Bank(kind, experts), start, weights)
    for path, held in found.items():
        if kind.kind == "lora":
            updates = [one[path]["lora_B.weight"] @ one[path]["lora_A.weight"] for one in experts]
            expected = sum(weight * update for weight, update in zip(weights, updates, strict=True))
            torch.testing.assert_close(held["lora_B.weight"] @ held["lora_A.weight"], expected)
        else:
            for name, tensor in held.items():
                expected = sum(weight * one[path][name] for weight, one in zip(weights, experts, strict=True))
                torch.testing.assert_close(tensor, expected)


def test_what_is_committed(tiny_folder: Path, tmp_path: Path) -> None:
    materials = materials_with_experts(tmp_path, tiny_folder)
    inputs: dict[str, Any] = {"made": "up"}
    average(materials, AverageJob(("baselines/a/x",), inputs, NEAR[:2], (0.75, 0.25)))
    manifest = materials.store.manifest("baselines/a/x")
    assert manifest is not None and manifest["seconds"] >= 0
    facts = {"members": [one.slice for one in NEAR[:2]], "weights": [0.75, 0.25], "trials": 1, "steps": 0}
    assert {name: manifest[name] for name in facts} == facts
    one, other = (materials.expert(near.expert) for near in NEAR[:2])
    for path, held in materials.expert("baselines/a/x").items():
        parts = [expert[path]["lora_B.weight"] @ expert[path]["lora_A.weight"] for expert in (one, other)]
        update = held["lora_B.weight"] @ held["lora_A.weight"]
        torch.testing.assert_close(update, 0.75 * parts[0] + 0.25 * parts[1])


# --- the target's data ---------------------------------------------------------------------------------------------


def make_in_earnest(plan: Plan) -> None:
    """Make features, the graph and the averages; experts are random ones, by their names, and scores made up."""
    materials = plan.materials
    names = sorted(str(one) for one in plan.slices())
    while ready := plan.ready():
        for node in ready:
            if isinstance(node.job, ExpertJob):
                seed = names.index(node.name.removeprefix("experts/"))
                files = to_files(materials.kind, random_expert(materials.kind, materials.backbone, seed, 0.3), "tiny")
                materials.store.commit(node.name, files, node.job.fingerprint, inputs=node.job.inputs)
            elif node.stage in ("features", "graph", *ROWS):
                assert node.make is not None
                node.make(materials, node.job)
            else:
                make(plan, node)
            plan.done(node)


def poison(table: Path) -> None:
    """Turn a task's examples round: every text gets the next label."""
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    labels = sorted({row["label"] for row in rows})
    turned = [{"text": "w1 " + r["text"], "label": labels[(labels.index(r["label"]) + 1) % len(labels)]} for r in rows]
    table.write_text("\n".join(map(json.dumps, turned)))


def test_a_task_with_poisoned_data_gets_the_same_expert(tmp_path: Path) -> None:
    """Of the same sources by the same weights, to the last byte; while its own experts and its slices are others."""
    make_study(tmp_path, targets=["beta@2#1"], embedding={"all": False, "similarity": "labels", "examples": 8})
    clean = planned(tmp_path, tmp_path / "clean")
    make_in_earnest(clean)
    poison(tmp_path / "data" / "beta.jsonl")
    poisoned = planned(tmp_path, tmp_path / "poisoned")
    make_in_earnest(poisoned)
    one, other = clean.store.artifacts(), poisoned.store.artifacts()
    own = "experts/beta@2#1"
    assert one[own]["fingerprint"] != other[own]["fingerprint"]
    assert one["slices/beta@2#1.parquet"]["files"] != other["slices/beta@2#1.parquet"]["files"]
    for method in ROWS:
        name = f"baselines/beta/{method}"
        assert one[name]["fingerprint"] == other[name]["fingerprint"] and one[name]["files"] == other[name]["files"]
    nearest_by_hand(clean.materials, job_of(clean, "beta", "zero_shot_uniform"))


def nearest_by_hand(materials: Materials, job: AverageJob) -> None:
    """Check a job's sources against the cosines of the mean embeddings of label texts."""
    means = {
        task: mean_feature(materials.backbone, materials.backbone.encode_texts(materials.task(task).label_texts))
        for task in ("alpha", "beta", "gamma")
    }
    cosines = {task: float(torch.cosine_similarity(means[task], means["beta"], dim=0)) for task in ("alpha", "gamma")}
    by_hand = sorted(cosines, key=lambda task: -cosines[task])
    assert [one.slice for one in job.neighbours] == [f"{task}@full#0" for task in by_hand]
    assert [one.similarity for one in job.neighbours] == pytest.approx([cosines[task] for task in by_hand], abs=1e-6)
