"""Scoring a multilabel task: what is kept of it bears its score out, and the report shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakelanes import make
from test_page import Reader
from tinystudy import make_study, make_task

from pitune.config import load_config
from pitune.interpolation.scoring import ScoringJob
from pitune.plan import Plan
from pitune.report import build_page, markdown
from pitune.results import wrong_scores
from pitune.tasks.metrics import METRICS

SETS = ((), ("good",), ("bad", "odd"), ("good", "bad", "odd"))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The plan of a study whose target is multilabel, and whose sources are not all of them."""
    lines = [json.dumps({"text": f"w{n % 60} w{n % 7} w{n // 2}", "label": SETS[n % 4]}) for n in range(150)]
    (tmp_path / "several.jsonl").write_text("\n".join(lines))
    labels = {"good": "w50", "bad": "w51", "odd": "w52"}
    several: dict[str, Any] = {"train": str(tmp_path / "several.jsonl"), "labels": labels}
    tasks = {"alpha": make_task(tmp_path / "data", "alpha"), "beta": make_task(tmp_path / "data", "beta")}
    tasks["several"] = several | {"metric": "mean_average_precision"}
    made = make_study(
        tmp_path,
        tasks=tasks,
        sources=list(tasks),
        targets=["several@2#0", "alpha@2#0"],
        methods=["zero_shot", "linear_probe", "single"],
    )
    return Plan.of(load_config(made))


def test_zero_shot_is_scored_by_what_its_predictions_keep(plan: Plan) -> None:
    while ready := plan.ready():
        for node in ready:
            if isinstance(node.job, ScoringJob) and node.job.expert is None:
                assert node.make is not None
                node.make(plan.materials, [node.job])
            else:
                make(plan, node)
            plan.done(node)
    store, task = plan.store, plan.facts.task("several")
    (row,) = [
        row
        for row in store.table("results.parquet").to_pylist()
        if row["method"] == "zero_shot" and row["task"] == "several"
    ]
    table = store.table(row["prediction"]).to_pydict()
    by_key = {example.key: [task.labels[label] for label in example.labels] for example in task.splits["test"]}
    assert dict(zip(table["key"], table["label"], strict=True)) == by_key
    for said, score in zip(table["prediction"], table["score"], strict=True):
        assert list(score) == list(task.labels) and said == [label for label in score if score[label] > 0]
    value = METRICS["mean_average_precision"](table["label"], table["prediction"], table["score"])
    assert row["value"] == pytest.approx(value) and row["metric"] == "mean_average_precision" and 0 < value < 1
    assert not [line for line in wrong_scores(store) if "zero_shot" in line]
    assert not [name for name in plan.nodes if name.startswith("baselines/several")]  # there is no probe of it

    store.write("study.yaml", plan.config.yaml().encode())
    assert "| several | 2 |" in markdown(store).replace("*", "")
    page = build_page(store)
    Reader(page)
    assert "w51, w52" in page and "none of them" in page
    drawn = store.table("slices/several@2#0.parquet").to_pylist()
    assert {"good", "bad", "odd"} == {label for one in drawn for label in one["label"]}
