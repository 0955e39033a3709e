"""The model card: what an expert is, what it was made from, how good it is beside others, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import pitune
from pitune.methods import METHODS
from pitune.results import RESULTS, shorten
from pitune.store import Manifest, Store

README = "README.md"
TEMPLATE = Path(__file__).with_name("card.md")
OF_PEFT = ("LORA", "PREFIX_TUNING")
"""What of the kinds' ``peft_type`` PEFT knows."""
HUB_TASKS = {"text": "text-classification", "image": "image-classification"}
"""What the Hub calls tasks, by modality."""
MOST_LABELS = 50
"""Labels whose texts a card lists, at most; of a retrieval task they are captions, hundreds of them."""


@dataclass(frozen=True)
class Facts:
    """What a card tells, as the study has it.

    Attributes:
        target: a slice, ``task@shots#seed``.
        row: of the result table, of the expert.
        rows: all of the target.
        inputs: what the expert's predictions were made from.
        expert: the expert's manifest.
        artifact: where the expert lies in the study.
        config: its ``adapter_config.json``, as it is given away.
        license: of the expert.
    """

    target: str
    row: Mapping[str, Any]
    rows: list[dict[str, Any]]
    inputs: Mapping[str, Any]
    expert: Manifest
    artifact: str
    config: Mapping[str, Any]
    license: str

    @property
    def is_on_hub(self) -> bool:
        """Whether the backbone's name is one of the Hugging Face Hub."""
        return "revision" in self.config

    @property
    def backbone(self) -> str:
        """The backbone as :func:`pitune.assets.fetch` takes it."""
        name, revision = self.config["base_model_name_or_path"], self.config.get("revision")
        return (f"hf:{name}" if self.is_on_hub else str(name)) + (f"@{revision}" if revision else "")


def write_card(store: Store, facts: Facts) -> str:
    """Return the model card of an expert: YAML that the Hub reads, and Markdown.

    Raises:
        PituneError: the study's card of the task is not there, or cannot be read.
    """
    task = facts.row["task"]
    labels = store.table(f"tasks/{task}", "labels.parquet").to_pylist()
    known, results = store.manifest(f"tasks/{task}") or {}, store.manifest(RESULTS) or {}
    method = METHODS[facts.row["method"]]
    card = ModelCard.from_template(
        _metadata(facts, str(known["modality"])),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        facts=facts,
        row=facts.row,
        method=method,
        task=known,
        labels=[(shorten(label["label"]), shorten(label["text"])) for label in labels[:MOST_LABELS]],
        members=members(store, facts.artifact, facts.expert),
        scores=[(METHODS[row["method"]], row) for row in facts.rows if row["method"] in METHODS],
        study=results["fingerprint"],
        of_peft=_is_of_peft(facts),
        version=pitune.__version__,
    )
    return str(card)


def _metadata(facts: Facts, modality: str) -> ModelCardData:
    row = facts.row
    result = EvalResult(
        task_type=HUB_TASKS.get(modality, "other"),
        dataset_type=row["task"],
        dataset_name=row["task"],
        dataset_split="test",
        metric_type=row["metric"],
        metric_value=round(row["value"], 6),
    )
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if facts.is_on_hub else {}
    return ModelCardData(
        license=facts.license,
        library_name="peft" if _is_of_peft(facts) else "pitune",
        base_model=facts.config["base_model_name_or_path"] if facts.is_on_hub else None,
        tags=["pitune", facts.config["peft_type"].lower(), "transfer-learning"],
        model_name=facts.target,
        eval_results=[result],
        **relation,
    )


def _is_of_peft(facts: Facts) -> bool:
    return facts.config["peft_type"] in OF_PEFT


def members(store: Store, artifact: str, manifest: Manifest) -> list[tuple[str, float | None]]:
    """Return the slices whose experts are in a merged one, with their weights: a learned one's mean over the sites.

    A weight is None where the rule that merged them has none; the list is empty where nothing was merged.
    """
    if "weights.parquet" in manifest["files"]:
        table = store.table(artifact, "weights.parquet").group_by("member", use_threads=False)
        means = table.aggregate([("weight", "mean")]).to_pydict()
        return list(zip(means["member"], means["weight_mean"], strict=True))
    names = manifest.get("members", [])
    return list(zip(names, manifest.get("weights", [None] * len(names)), strict=True))
