"""The linear probe as a row of the table: what it is made from, which tasks have it, that its score is borne out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakelanes import make, make_everything
from tinystudy import make_study

from pitune.config import load_config
from pitune.interpolation.jobs import ProbeJob
from pitune.methods import METHODS
from pitune.plan import Plan
from pitune.report import markdown
from pitune.report.scores import average, read_targets
from pitune.report.words import shortfalls
from pitune.results import wrong_scores
from pitune.store import table_bytes

PROBE, PREDICTIONS = "baselines/beta@2#1/linear_probe", "predictions/beta@2#1/linear_probe.parquet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a retrieval task among its targets."""
    folder = tmp_path_factory.mktemp("probe")
    rows = [json.dumps({"text": f"w{n % 60} w{n % 7}", "said": f"w{n % 50} w{n // 50}"}) for n in range(150)]
    (folder / "found.jsonl").write_text("\n".join(rows))
    path = make_study(folder, methods=["linear_probe", "single", "pi"])
    found = {"train": str(folder / "found.jsonl"), "caption": "said"}
    config = load_config(path)
    tasks: dict[str, Any] = {name: source and source.model_dump() for name, source in config.tasks.items()}
    targets = ["alpha@2#0", "beta@2#1", "found@2#0"]
    make_study(folder, methods=["linear_probe", "single", "pi"], tasks={**tasks, "found": found}, targets=targets)
    return folder


def planned(folder: Path, study: Path, *overrides: str) -> Plan:
    return Plan.of(load_config(folder / "study.yaml", [f"study={study}", *overrides]))


def test_it_is_made_from_the_backbone_and_the_slice_alone(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path)
    node, scored = plan.nodes[PROBE], plan.nodes[PREDICTIONS]
    assert (node.lane, node.needs, node.stage) == ("task", (), "linear_probe")
    assert isinstance(node.job, ProbeJob) and node.job.trials == 1
    assert node.cost == (3 * 2 + 3 * 2) / 2  # three labels: the shots, and as many to validate on; forward only
    assert scored.needs == (PROBE,) and scored.make is not plan.nodes["predictions/beta@2#1/single.parquet"].make
    assert scored.together != plan.nodes["predictions/beta@2#1/single.parquet"].together
    for changed in ("expert.rank=1", "training.few.steps=9", "embedding.examples=4", "sweep.top_k=[1]"):
        assert planned(folder, tmp_path, changed).nodes[PROBE].job.fingerprint == node.job.fingerprint
    more = planned(folder, tmp_path, "sweep.trials=50").nodes[PROBE].job
    assert isinstance(more, ProbeJob) and more.trials == 15 and more.fingerprint != node.job.fingerprint
    full = planned(folder, tmp_path, "targets=[beta@full#0]").nodes["baselines/beta@full#0/linear_probe"].job
    assert full.inputs["validation_examples"] == 20 and node.job.inputs["validation_examples"] is None


def test_a_retrieval_task_has_no_row_and_the_others_are_averaged_over_all_targets(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path)
    make_everything(plan)
    rows = {(row["slice"], row["method"]) for row in plan.store.table("results.parquet").to_pylist()}
    others = {(target, method) for target in plan.config.targets for method in ("single", "pi")}
    assert rows == others | {("alpha@2#0", "linear_probe"), ("beta@2#1", "linear_probe")}
    assert not [name for name in plan.nodes if "linear_probe" in name and "found" in name]
    plan.store.write("study.yaml", plan.config.yaml().encode())
    text = markdown(plan.store).replace("*", "")
    assert "| found | 2 | – | 100.0 | 100.0 |" in text and "| mean of 3 | 2 | – | 100.0 | 100.0 |" in text
    assert re.search(r"\| linear probe \| – \| [+−]?0\.0 \|", text)  # over the slices that have both
    found = read_targets(plan.store)
    said = "linear probe is of 2 of the 3 targets only, and has no average."
    assert said in shortfalls(average(found), found) and average(found).left_out == 0
    assert METHODS["linear_probe"].families == ("classification",)


def test_a_study_of_nothing_else(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path, "methods=[linear_probe]", "targets=[found@2#0]")
    make_everything(plan)
    assert plan.store.table("results.parquet").num_rows == 0 and not wrong_scores(plan.store)


def test_its_row_says_what_it_tried_and_is_borne_out_by_its_predictions(folder: Path, tmp_path: Path) -> None:
    """The probe and its predictions are made in earnest, all else is made up."""
    plan = planned(folder, tmp_path, "sweep.trials=8", "methods=[linear_probe,zero_shot]")
    while ready := plan.ready():
        for node in ready:
            if "linear_probe" in node.name:
                assert node.make is not None
                node.make(plan.materials, [node.job] if node.together else node.job)
            else:
                make(plan, node)
            plan.done(node)
    rows = {
        row["slice"]: row for row in plan.store.table("results.parquet").to_pylist() if row["method"] != "zero_shot"
    }
    for name in ("alpha@2#0", "beta@2#1"):
        made = plan.store.manifest(f"baselines/{name}/linear_probe")
        assert made is not None and len(made["tried"]) == 8 and made["slice"] == name
        assert [rows[name][column] for column in ("trials", "steps", "seconds")] == [8, made["steps"], made["seconds"]]
        assert made["steps"] > 8 and rows[name]["examples"] == len(plan.materials.test(name.partition("@")[0]))
    assert not wrong_scores(plan.store) and not list(plan.store.problems())
    table = plan.store.table(PREDICTIONS).to_pylist()
    told = plan.store.manifest(PREDICTIONS)
    assert told is not None
    for row in table:
        row["prediction"] = "odd" if row["label"] != "odd" else "bad"
    facts = {name: told[name] for name in ("metric", "value", "examples", "expert")}
    plan.store.commit(PREDICTIONS, {"": table_bytes(table)}, told["fingerprint"], inputs=told["inputs"], **facts)
    (wrong,) = wrong_scores(plan.store)
    assert wrong.startswith("results.parquet: beta@2#1 linear_probe is ") and wrong.endswith(f"{PREDICTIONS} gives 0.0")
