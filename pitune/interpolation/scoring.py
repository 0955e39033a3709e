"""Scoring on the test split: several experts at once, what no expert touches run once for all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pitune.backbones import Backbone
from pitune.experts import Bank, Expert, ExpertKind
from pitune.materials import Materials
from pitune.objectives import NOBODY, Objective, Rows
from pitune.store import Job, table_bytes
from pitune.tasks.metrics import METRICS


@dataclass(frozen=True)
class ScoringJob(Job):
    """An expert (an artifact) to score on a task's test split; None: the backbone alone."""

    task: str
    expert: str | None


@torch.no_grad()
def answers(
    backbone: Backbone, kind: ExpertKind, objective: Objective, experts: Sequence[Expert], rows: Rows
) -> tuple[list[list[Any]], list[list[Any]]]:
    """Return the answer of each expert to each row, and how sure it is of it, E lists each.

    Without experts the backbone alone answers: E is 1.
    """
    acting = Bank(kind, experts).to(backbone.device) if experts else NOBODY
    firsts = backbone.firsts(list(experts[0])) if experts else {}
    copies = max(1, len(experts))
    said, scores = ([[None] * len(rows) for _ in range(copies)] for _ in range(2))
    order = rows.by_cost()
    each = backbone.scored_at_once(copies, firsts, acting.conditional)
    for start in range(0, len(order), each):
        chosen = order[start : start + each]
        batch = objective.collate(backbone, firsts, [rows.take(chosen)] * copies)
        found = objective.answers(backbone, acting, batch)
        for whole, part in ((said, found.answers), (scores, found.scores)):
            for mine, theirs in zip(whole, part, strict=True):
                for index, one in zip(chosen, theirs, strict=True):
                    mine[index] = one
    return said, scores


def score(materials: Materials, jobs: Sequence[ScoringJob]) -> None:
    """Score experts of one task on its test examples and commit the predictions."""
    rows = materials.rows_of(jobs[0].task, materials.test(jobs[0].task), again=False)
    together: list[tuple[ScoringJob, Expert]] = []
    for job in jobs:
        kind, expert = materials.saved(job.expert) if job.expert else (materials.kind, {})
        if expert and isinstance(kind, type(materials.kind)):
            together.append((job, expert))
        else:  # the backbone alone, or an expert that shares no pass
            _score(materials, kind, [(job, expert)], rows)
    if together:
        _score(materials, materials.kind, together, rows)


def _score(materials: Materials, kind: ExpertKind, held: Sequence[tuple[ScoringJob, Expert]], rows: Rows) -> None:
    """Score experts of one kind in one pass, or the backbone alone, whose expert is empty."""
    began = time.perf_counter()
    jobs, experts = [job for job, _ in held], [expert for _, expert in held if expert]
    said, scores = answers(materials.backbone, kind, materials.objective, experts, rows)
    seconds = (time.perf_counter() - began) / len(jobs)
    for job, mine, sure in zip(jobs, said, scores, strict=True):
        commit_predictions(materials, job, mine, sure, seconds)


def commit_predictions(
    materials: Materials, job: ScoringJob, said: Sequence[Any], sure: Sequence[Any], seconds: float
) -> None:
    """Commit what was predicted of a task's test examples, and what that scores.

    Args:
        materials: the study's.
        job: whose expert predicted.
        said: the answer to each example.
        sure: how sure the expert is of it, or how well each label scores.
        seconds: what it took.
    """
    task, examples, text = materials.task(job.task), materials.test(job.task), materials.objective.text
    truth = [text(task, materials.objective.target(task, example)) for example in examples]
    predictions = [text(task, answer) for answer in said]
    scores = [dict(zip(task.labels, one, strict=True)) if isinstance(one, list) else one for one in sure]
    table = [
        {"key": example.key, "label": label, "prediction": prediction, "score": value}
        for example, label, prediction, value in zip(examples, truth, predictions, scores, strict=True)
    ]
    materials.store.commit(
        job.artifacts[0],
        {"": table_bytes(table)},
        job.fingerprint,
        inputs=job.inputs,
        expert=job.expert,
        seconds=seconds,
        metric=task.metric,
        value=METRICS[task.metric](truth, predictions, scores),
        examples=len(examples),
    )
