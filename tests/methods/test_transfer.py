"""The transfer matrix: its pairs, its table, that nearest is one of them, and what it is held against."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fakelanes import make
from tinystudy import make_study

from pitune.config import load_config
from pitune.interpolation.scoring import ScoringJob
from pitune.methods.transfer import wrong_pairs
from pitune.plan import Plan
from pitune.results import TRANSFER, wrong_scores
from pitune.store import table_bytes
from pitune.training.pack import ExpertJob

SOURCES = ("alpha@full#0", "beta@full#0", "gamma@full#0")
TARGETS = ("alpha@2#0", "beta@2#1")
ROWS = 7  # of a made-up test split


def make_scored(plan: Plan) -> None:
    """Make everything up, predictions with values that differ from artifact to artifact."""
    while ready := plan.ready():
        for node in ready:
            if isinstance(node.job, ScoringJob):
                right = zlib.crc32(node.name.encode()) % (ROWS + 1)
                table = [
                    {"label": "yes", "prediction": "yes" if row < right else "no", "score": 0.5} for row in range(ROWS)
                ]
                facts = {"metric": "accuracy", "value": right / ROWS, "examples": ROWS, "expert": node.job.expert}
                plan.store.commit(
                    node.name, {"": table_bytes(table)}, node.job.fingerprint, inputs=node.job.inputs, **facts
                )
            else:
                make(plan, node)
            plan.done(node)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A study of which everything is made, if only made up."""
    folder = tmp_path_factory.mktemp("transfer")
    plan = Plan.of(load_config(make_study(folder), ["transfer={}"]))
    make_scored(plan)
    return plan


def test_a_pair_is_the_targets_expert_but_for_its_start(plan: Plan) -> None:
    for source, target in itertools.product(SOURCES, TARGETS):  # the own task's source is one of them
        node, own = plan.nodes[f"transfer/{target}/{source}"], plan.nodes[f"experts/{target}"].job
        assert isinstance(node.job, ExpertJob) and isinstance(own, ExpertJob)
        assert (node.lane, node.stage, node.needs) == ("gang", "transfer", (f"experts/{source}",))
        assert (node.job.name, node.job.data, node.job.recipe) == (own.name, own.data, own.recipe)
        assert node.job.inputs == {**own.inputs, "start": plan.nodes[f"experts/{source}"].job.fingerprint}
    assert sum(name.startswith("transfer/") for name in plan.nodes) == 6


def test_nearest_is_a_look_up(plan: Plan) -> None:
    """The pair of the nearest source is trained once and scored once."""
    rows = {(row["slice"], row["method"]): row for row in plan.store.table("results.parquet").to_pylist()}
    for target, source in zip(TARGETS, ("beta@full#0", "alpha@full#0"), strict=True):
        row = rows[target, "nearest"]
        assert row["prediction"] == f"predictions/{target}/transfer/{source}.parquet"
        needed = [one for one in plan.nodes.values() if f"transfer/{target}/{source}" in one.needs]
        scored = [one for one in needed if one.stage == "predictions"]
        assert [one.name for one in scored] == [row["prediction"]]
        pairs = plan.store.table(TRANSFER).to_pylist()
        (pair,) = (one for one in pairs if (one["slice"], one["source"]) == (target, source))
        assert pair["score"] == row["value"] and pair["single"] == rows[target, "single"]["value"]
    assert not wrong_scores(plan.store)


def test_the_table_is_what_the_predictions_say(plan: Plan) -> None:
    root = Path(plan.store.root)
    table = pq.read_table(root / TRANSFER)
    assert table.column_names == [
        *("source", "target", "shots", "seed", "slice", "metric", "score", "single", "gain"),
        *("prediction", "single_prediction"),
    ]
    rows = table.to_pylist()
    assert [(row["slice"], row["source"]) for row in rows] == list(itertools.product(TARGETS, SOURCES))
    assert {(row["slice"], row["target"], row["shots"], row["seed"], row["metric"]) for row in rows} == {
        ("alpha@2#0", "alpha", "2", 0, "accuracy"), ("beta@2#1", "beta", "2", 1, "accuracy")
    }  # fmt: skip

    def share(artifact: str) -> float:
        found = pq.read_table(root / artifact).to_pydict()["prediction"]
        return found.count("yes") / ROWS

    for row in rows:
        assert row["prediction"] == f"predictions/{row['slice']}/transfer/{row['source']}.parquet"
        score, single = share(row["prediction"]), share(f"predictions/{row['slice']}/single.parquet")
        assert (row["score"], row["single"], row["gain"]) == pytest.approx((score, single, score - single))
    assert len({row["gain"] for row in rows}) > 3
    assert not wrong_pairs(plan.store)


@pytest.mark.parametrize("column", ["score", "single", "gain"])
def test_a_wrong_row_is_found(plan: Plan, column: str) -> None:
    kept = plan.store.table(TRANSFER)
    manifest = plan.store.manifest(TRANSFER)
    assert manifest is not None
    rows = kept.to_pylist()
    rows[4][column] += 0.125
    try:
        plan.store.commit(TRANSFER, {"": table_bytes(rows)}, manifest["fingerprint"], inputs=manifest["inputs"])
        (line,) = wrong_pairs(plan.store)
        assert line.startswith(f"{TRANSFER}: beta@2#1 from beta@full#0: {column} is {rows[4][column]}, ")
    finally:
        plan.store.commit(TRANSFER, {"": table_bytes(kept)}, manifest["fingerprint"], inputs=manifest["inputs"])
    assert not wrong_pairs(plan.store)


@pytest.mark.parametrize(
    ("overrides", "own"),
    [
        (["methods=[single,nearest]"], "single"),
        (["methods=[nearest]"], "transfer/common"),
        (["methods=[single,nearest]", "sweep.trials=2"], "transfer/common"),  # single is the better of two trials
    ],
)
def test_the_gain_is_over_the_targets_own_expert_whatever_rows_there_are(
    plan: Plan, tmp_path: Path, overrides: list[str], own: str
) -> None:
    path = Path(plan.store.root).parent / "study.yaml"
    other = Plan.of(load_config(path, [f"study={tmp_path / 'study'}", "transfer={}", *overrides]))
    make_scored(other)
    rows = other.store.table(TRANSFER).to_pylist()
    assert {row["single_prediction"] for row in rows} == {f"predictions/{t}/{own}.parquet" for t in TARGETS}
    for row in rows:
        manifest = other.store.manifest(row["single_prediction"])
        assert manifest is not None and manifest["expert"] == f"experts/{row['slice']}"
    assert not wrong_pairs(other.store) and not wrong_scores(other.store)


def test_without_a_matrix_nearest_is_the_only_pair(plan: Plan, tmp_path: Path) -> None:
    alone = Plan.of(load_config(Path(plan.store.root).parent / "study.yaml", [f"study={tmp_path / 'study'}"]))
    make_scored(alone)
    pairs = {name for name in alone.nodes if name.startswith("transfer/")}
    assert pairs == {"transfer/alpha@2#0/beta@full#0", "transfer/beta@2#1/alpha@full#0"}
    assert {name: plan.nodes[name].job.fingerprint for name in pairs} == {
        name: alone.nodes[name].job.fingerprint for name in pairs
    }
    assert TRANSFER not in alone.nodes and not wrong_pairs(alone.store)
