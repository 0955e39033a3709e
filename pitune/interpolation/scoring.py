"""Scoring on the test split: several experts at once, the trunk run once for all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pitune.experts import Bank, Expert, ExpertKind
from pitune.materials import Materials
from pitune.store import Job, table_bytes
from pitune.tasks.metrics import METRICS
from pitune.training.examples import Rows

ROWS = 32  # of each expert, in a batch


@dataclass(frozen=True)
class Prediction(Job):
    """An expert to score on a task's test split; None: the backbone alone."""

    task: str
    expert: str | None


@torch.no_grad()
def probabilities(kind: ExpertKind, experts: Sequence[Expert], rows: Rows) -> Tensor:
    """Return each expert's label probabilities for every row: (E, rows, labels), float32, on the CPU."""
    bank = Bank(kind, experts).to(rows.backbone.device)
    found = torch.empty(len(experts), len(rows), len(rows.candidates))
    order = rows.by_length()
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        inputs = rows.inputs(chosen).repeat(len(experts))
        with bank.attached(rows.backbone.model):
            embeddings = rows.backbone(inputs, rows.first)
        found[:, chosen] = rows.logits(embeddings).softmax(-1).view(len(experts), len(chosen), -1).cpu()
    return found


def predict(materials: Materials, wanted: Sequence[Prediction]) -> None:
    """Score experts of one task on its whole test split and commit the predictions."""
    began = time.perf_counter()
    task = materials.task(wanted[0].task)
    examples = task.splits["test"]
    rows = Rows(materials.backbone, task, examples, materials.first, keep=False)
    experts = [materials.expert(one.expert) if one.expert else materials.start for one in wanted]
    found = probabilities(materials.config.expert, experts, rows)
    seconds = (time.perf_counter() - began) / len(wanted)
    labels = [example.label for example in examples]
    for one, chances in zip(wanted, found, strict=True):
        scores, choices = chances.max(-1)
        table = [
            {"key": example.key, "label": task.labels[example.label], "prediction": task.labels[choice], "score": score}
            for example, choice, score in zip(examples, choices.tolist(), scores.tolist(), strict=True)
        ]
        value = METRICS[task.metric](labels, choices.tolist())
        for artifact in one.artifacts:
            facts = {
                "metric": task.metric,
                "value": value,
                "examples": len(examples),
                "seconds": seconds / len(one.artifacts),
            }
            materials.store.commit(
                artifact, {"": table_bytes(table)}, one.fingerprint, inputs=one.inputs, expert=one.expert, **facts
            )
