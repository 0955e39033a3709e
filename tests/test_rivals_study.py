"""A whole study of the methods that merge and of the controls, on a real, local Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tinymodel import plain_embedding
from tinystudy import TEXTS, make_study
from transformers import AutoModel, AutoTokenizer

from pitune.config import load_config
from pitune.results import wrong_scores
from pitune.study import Study

pytestmark = pytest.mark.slow
MERGES = ("uniform", "average_all", "similarity", "task_arithmetic", "ties", "dare_ties", "lorahub")
OF_OTHERS = ("zero_shot_nearest", "zero_shot_uniform", "zero_shot_similarity")
METHODS = (*OF_OTHERS, *MERGES, "fusion", "pi", "stacked", "crossfit", "pi_farthest", "pi_random")
TARGET = "beta@2#1"


class Silent:
    def show(self, stages: Sequence[Any]) -> None:
        """Tell nobody."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Study:
    sweep = {"top_k": [1, 2], "temperature": [0.5], "validate_every": 2, "trials": 2}
    path = make_study(tmp_path_factory.mktemp("rivals"), targets=[TARGET], methods=list(METHODS), sweep=sweep)
    made = Study(load_config(path))
    made.run(Silent())
    return made


def manifest(study: Study, artifact: str) -> dict[str, Any]:
    found = study.store.manifest(artifact)
    assert found is not None, artifact
    return dict(found)


def test_every_row_is_what_plain_peft_scores_of_the_exported_expert(study: Study) -> None:
    folder, root = Path(study.config.backbone.uri), Path(study.store.root)
    tokenizer, alone = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    task = study.materials.task("beta")
    rows = study.store.table("results.parquet").to_pylist()
    assert [row["method"] for row in rows] == list(METHODS)
    for row in rows:
        expert = manifest(study, row["prediction"])["expert"]
        assert expert.startswith(("baselines/", "interpolations/", "controls/"))
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(folder).eval(), str(root / expert)).eval()

        @torch.no_grad()
        def embedded(text: str, model: torch.nn.Module) -> torch.Tensor:
            return plain_embedding(model, tokenizer(text, truncation=True, max_length=16)["input_ids"])

        candidates = torch.stack([embedded(TEXTS[label], alone) for label in task.labels])
        said = [task.labels[int((candidates @ embedded(one.text, model)).argmax())] for one in task.splits["test"]]
        assert study.store.table(row["prediction"])["prediction"].to_pylist() == said, row
        made = manifest(study, expert)
        assert (row["trials"], row["steps"]) == (made["trials"], made["steps"]), row
    assert not wrong_scores(study.store) and not list(study.store.problems())
    assert not list(root.glob("sweeps/trials/*"))


def test_what_each_has_cost(study: Study) -> None:
    rows = {row["method"]: row for row in study.store.table("results.parquet").to_pylist()}
    fitted = rows["crossfit"]["trials"] - rows["stacked"]["trials"]
    assert fitted in (2 * 3, 2 * 4)  # on two folds, with another own expert or without
    assert {name: rows[name]["trials"] for name in METHODS} == {
        **dict.fromkeys(OF_OTHERS, 1), **dict.fromkeys(MERGES, 2),
        "fusion": 4, "pi": 4, "stacked": 2 + 2 + 4, "crossfit": 2 + 2 + 4 + fitted, "pi_farthest": 1, "pi_random": 1
    }  # fmt: skip
    assert not any(rows[name]["steps"] for name in OF_OTHERS)
    assert {name: rows[name]["steps"] for name in MERGES} == {**dict.fromkeys(MERGES, 0), "lorahub": 2 * 4}
    assert all(4 + 3 * 2 <= rows[name]["steps"] <= 4 * 4 for name in ("fusion", "pi"))  # ASHA stops some
    assert rows["stacked"]["steps"] == rows["pi"]["steps"] + 2 * 2 * 4  # and of single and nearest, at two rates
    assert rows["crossfit"]["steps"] == rows["stacked"]["steps"] + 4 * fitted
    assert rows["pi_farthest"]["steps"] == rows["pi_random"]["steps"] == 4
    assert all(row["seconds"] > 0 for row in rows.values())


def test_the_controls_have_the_setting_that_pi_chose(study: Study) -> None:
    pi = manifest(study, f"interpolations/{TARGET}")
    for control in ("farthest", "random"):
        found = manifest(study, f"controls/{TARGET}/{control}")
        assert [found[name] for name in ("top_k", "temperature", "own", "rate")] == [
            pi[name] for name in ("top_k", "temperature", "own", "rate")
        ]
    assert manifest(study, f"controls/{TARGET}/random")["members"] == pi["members"]


def test_fusion_leaves_the_experts_as_they_are(study: Study) -> None:
    """Its export is the members' updates with its weights; pi's, whose experts moved, is not."""
    for artifact, holds in ((f"baselines/{TARGET}/fusion", True), (f"interpolations/{TARGET}", False)):
        made = manifest(study, artifact)
        experts = {name: study.materials.expert(f"experts/{name}") for name in made["members"]}
        if made["own"] == "fresh":
            experts[TARGET] = study.materials.start
        merged = study.materials.expert(artifact)
        rows = study.store.table(artifact, "weights.parquet").to_pylist()
        for site, held in merged.items():
            weights = {row["member"]: row["weight"] for row in rows if row["site"] == site}
            parts = [
                weights[name] * one[site]["lora_B.weight"] @ one[site]["lora_A.weight"] for name, one in experts.items()
            ]
            update = held["lora_B.weight"] @ held["lora_A.weight"]
            assert torch.allclose(update, torch.stack(parts).sum(0), atol=1e-6, rtol=1e-4) is holds


def test_run_again_nothing_is_left_to_make(study: Study) -> None:
    from pitune.plan import Plan

    assert not Plan.of(study.config).lanes()
