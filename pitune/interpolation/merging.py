"""Merges of a target's sources and its own expert: nothing is tuned, the best of several settings is kept.

All of them are the start plus weighted task vectors: of the experts themselves, or of one that they were merged into
beforehand. Task vectors are θ − θ_start by parameter; LoRA's are updates of the weight (see ``ExpertKind.vector``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pitune.errors import PituneError
from pitune.experts import Bank, Expert, ExpertKind, Lora
from pitune.experts.checkpoint import to_files
from pitune.interpolation.jobs import AverageJob, MergeJob, WeightSearchJob
from pitune.interpolation.merges import dare_ties, ties
from pitune.interpolation.tune import Setting, starting_logits, validate_all
from pitune.materials import Materials
from pitune.objectives.rows import seed_of

Tried = Mapping[str, Any]
"""A setting of a merge: ``top_k``, and what its rule takes."""
DIGITS = 6  # of the error of a rank: what lies beyond is rounding, of kinds that have no rank too


@dataclass(frozen=True)
class Candidate:
    """A merged expert.

    Attributes:
        expert: its parameters.
        setting: what it was made by.
        members: the slices whose experts are in it.
        rank_error: what a rank took of it, ‖Δ − Δ'‖ / ‖Δ‖ over all sites.
    """

    expert: Expert
    setting: Tried
    members: Sequence[str]
    rank_error: float = 0.0


# --- rules: weights of the experts, or one vector of theirs and its weight -------------------------------------------


def _average(setting: Tried, similarities: Sequence[float]) -> list[float]:
    """Weigh all sources alike; the own expert has the share ``own``, or as much as a source."""
    k = len(similarities)
    own = setting.get("own", 1 / (k + 1))
    return [(1 - own) / k] * k + [own]


def _softmax(setting: Tried, similarities: Sequence[float]) -> list[float]:
    """Weigh by softmax(similarity / temperature), as an interpolation starts."""
    logits = starting_logits(similarities, setting["temperature"], "similarity", setting["own"])
    weights: list[float] = logits.double().softmax(0).tolist()
    return weights


def _sum(setting: Tried, similarities: Sequence[float]) -> list[float]:
    """Scale the sum of all."""
    return [setting["scale"]] * (len(similarities) + 1)


def _trim(vectors: Sequence[Tensor], setting: Tried, generator: torch.Generator) -> Tensor:
    return ties(vectors, setting["density"])


def _drop(vectors: Sequence[Tensor], setting: Tried, generator: torch.Generator) -> Tensor:
    return dare_ties(vectors, setting["density"], generator)


WEIGHTS: dict[str, Callable[[Tried, Sequence[float]], list[float]]] = {
    "average": _average,
    "softmax": _softmax,
    "sum": _sum,
}
"""Rules that weigh the experts: from a setting and the sources' similarities to the weights, the own expert's last."""
VECTORS: dict[str, Callable[[Sequence[Tensor], Tried, torch.Generator], Tensor]] = {"trim": _trim, "drop": _drop}
"""Rules that make one vector of all, tensor by tensor; its weight is the setting's ``scale``."""
RULES = (*WEIGHTS, *VECTORS)


@torch.no_grad()
def added_up(bank: Bank, start: Expert, weights: Sequence[float]) -> Expert:
    """Return the start plus the weighted sum of the task vectors of a bank's experts."""
    given = torch.tensor(list(weights), dtype=torch.float32)
    found: Expert = {}
    for path, site in bank.named_sites():
        held = bank.kind.summed(site.tensors(), start[path], given)
        found[path] = {name: tensor[0].detach().clone() for name, tensor in held.items()}
    return found


@torch.no_grad()
def merged(
    kind: ExpertKind, experts: Sequence[Expert], start: Expert, merge: Callable[[Sequence[Tensor]], Tensor], rank: int
) -> tuple[Expert, float]:
    """Merge experts' task vectors, tensor by tensor.

    Args:
        kind: theirs.
        experts: one or more.
        start: what they have in common.
        merge: makes one of a tensor's vectors.
        rank: of the result, where the kind has ranks.

    Returns:
        The expert, and what its rank took of it.
    """
    found: Expert = {}
    lost = whole = 0.0
    for path in start:
        vectors = [kind.vector(expert[path], start[path]) for expert in experts]
        vector = {name: merge([one[name] for one in vectors]) for name in vectors[0]}
        found[path] = kind.from_vector(vector, start[path], rank)
        for name, reached in kind.vector(found[path], start[path]).items():
            lost += float((vector[name] - reached).double().square().sum())
            whole += float(vector[name].double().square().sum())
    return found, round(math.sqrt(lost / whole), DIGITS) if whole else 0.0


def candidates(kind: ExpertKind, job: MergeJob, experts: Sequence[Expert], start: Expert) -> list[Candidate]:
    """Return the merge by each setting of a job.

    Args:
        kind: of the experts.
        job: what is merged.
        experts: as many sources' as the largest ``top_k``, in the job's order, and the own one.
        start: of all of them.
    """
    found: list[Candidate] = []
    known: dict[tuple[Any, ...], tuple[Expert, float]] = {}  # settings that differ in their scale share a vector
    for setting in job.tried:
        k = setting["top_k"]
        some = [*experts[:k], start if setting.get("own") == "fresh" else experts[-1]]
        if job.rule in WEIGHTS:
            expert = added_up(Bank(kind, some), start, WEIGHTS[job.rule](setting, job.similarities(k)))
            found.append(Candidate(expert, setting, job.members(k)))
            continue
        key = k, setting["density"]
        if key not in known:
            rank = kind.rank if isinstance(kind, Lora) else 1
            known[key] = merged(kind, some, start, _merge(job, setting), len(some) * rank)
        whole, error = known[key]
        expert = added_up(Bank(kind, [whole]), start, [setting["scale"]])
        found.append(Candidate(expert, setting, job.members(k), error))
    return found


def _merge(job: MergeJob, setting: Tried) -> Callable[[Sequence[Tensor]], Tensor]:
    """Return a job's rule; what is random in it depends on the members' names and the density alone."""
    seed = seed_of(" ".join([*job.members(setting["top_k"]), str(setting["density"])]))
    generator = torch.Generator().manual_seed(seed)
    return lambda vectors: VECTORS[job.rule](vectors, setting, generator)


# --- the stage ----------------------------------------------------------------------------------------------------


def average(materials: Materials, job: AverageJob) -> None:
    """Commit the weighted average of experts: the start plus their task vectors by weight. No data is looked at.

    Raises:
        PituneError: an expert cannot be read.
    """
    began = time.perf_counter()
    bank = Bank(materials.kind, [materials.expert(one.expert) for one in job.neighbours])
    materials.store.commit(
        job.artifacts[0],
        to_files(materials.kind, added_up(bank, materials.start, job.weights), materials.settings.uri),
        job.fingerprint,
        inputs=job.inputs,
        members=[one.slice for one in job.neighbours],
        weights=list(job.weights),
        trials=1,
        steps=0,
        seconds=time.perf_counter() - began,
    )


def merge_best(materials: Materials, job: MergeJob) -> None:
    """Merge by every setting, validate all in one pass and commit the best.

    Raises:
        PituneError: no validation loss is a number, or an expert cannot be read.
    """
    began = time.perf_counter()
    most = max(setting["top_k"] for setting in job.tried)
    experts = [materials.expert(artifact) for artifact in job.experts(most)]
    keep_best(materials, job, candidates(materials.kind, job, experts, materials.start), began)


def keep_best(
    materials: Materials, job: MergeJob | WeightSearchJob, found: Sequence[Candidate], began: float, steps: int = 0
) -> None:
    """Validate candidates in one pass on the expert axis and commit the best, of equally good ones the first.

    Args:
        materials: the study's.
        job: what they were made for.
        found: the candidates, in the order of the job's settings.
        began: when making them began, by ``time.perf_counter``.
        steps: what it took to make all of them.

    Raises:
        PituneError: no validation loss is a number.
    """
    setting = Setting.of(materials)
    bank = Bank(materials.kind, [one.expert for one in found]).to(materials.backbone.device)
    rows = materials.rows(((job.slice, 1.0),), "validation")
    scores = validate_all(setting, bank, len(found), rows)
    losses = [score.loss if math.isfinite(score.loss) else math.inf for score in scores]
    best = losses.index(min(losses))
    if losses[best] == math.inf:
        raise PituneError(f"{job.artifacts[0]}: no merge has a validation loss that is a number; its experts diverged")
    materials.store.commit(
        job.artifacts[0],
        to_files(materials.kind, found[best].expert, materials.settings.uri),
        job.fingerprint,
        inputs=job.inputs,
        slice=str(job.slice),
        top_k=found[best].setting["top_k"],
        setting=dict(found[best].setting),
        members=list(found[best].members),
        validation=vars(scores[best]),
        tried=[
            {**one.setting, "loss": loss if loss < math.inf else None, "accuracy": score.accuracy}
            for one, loss, score in zip(found, losses, scores, strict=True)
        ],
        trials=len(found),
        steps=steps,
        rank_error=found[best].rank_error,
        seconds=time.perf_counter() - began,
    )
