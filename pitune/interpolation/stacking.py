"""Stacking: what several methods came to for a target, averaged by how likely each makes its validation examples."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from pitune.errors import PituneError
from pitune.experts import Bank, Expert, Lora
from pitune.experts.checkpoint import to_files
from pitune.experts.lora import A, truncate
from pitune.interpolation.jobs import StackingJob
from pitune.interpolation.merging import DIGITS, added_up
from pitune.interpolation.tune import Setting, validate_all
from pitune.materials import Materials
from pitune.training.choice import manifests_of, spent_together


def stack(materials: Materials, job: StackingJob) -> None:
    """Average what several methods came to for a target, and commit it.

    Raises:
        PituneError: one is missing, or none has a validation loss that is a number.
    """
    began = time.perf_counter()
    found = manifests_of(materials, job.tried)
    losses = {name: found[name]["validation"]["loss"] for name in job.tried}
    rows = materials.rows(((job.slice, 1.0),), "validation")
    if all(loss is None for loss in losses.values()):
        raise PituneError(f"{job.artifacts[0]}: none of {', '.join(job.tried)} has a validation loss that is a number")
    weights = likelihood_weights(list(losses.values()), len(rows))
    held = [(materials.expert(name), weight) for name, weight in zip(job.tried, weights, strict=True) if weight]
    expert, rank_error = averaged(materials, [one for one, _ in held], [weight for _, weight in held], job.max_rank)
    bank = Bank(materials.kind, [expert]).to(materials.backbone.device)
    took = spent_together(list(found.values()))
    materials.store.commit(
        job.artifacts[0],
        to_files(materials.kind, expert, materials.settings.uri),
        job.fingerprint,
        inputs=job.inputs,
        slice=str(job.slice),
        members=list(job.tried),
        weights=weights,
        tried=losses,
        validation=vars(validate_all(Setting.of(materials), bank, 1, rows)[0]),
        rank_error=rank_error,
        trials=took.trials,
        steps=took.steps,
        seconds=took.seconds + time.perf_counter() - began,
    )


def likelihood_weights(losses: Sequence[float | None], examples: int) -> list[float]:
    """Return each model's share, by the likelihood of examples that it has not learned from (pseudo-BMA).

    It is exp(−n · loss) of all models' (Yao et al. 2018, arXiv 1704.02030, section 3.4, with examples that are held out
    in place of leave-one-out): where examples are few or models alike they share, else the best one has nearly all.

    Args:
        losses: the mean cross-entropy of each; None of one that has failed, which gets nothing. One is a number.
        examples: n, what they are means over.
    """
    scores = [-math.inf if loss is None else -examples * loss for loss in losses]
    shares: list[float] = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
    return shares


def averaged(
    materials: Materials, experts: Sequence[Expert], weights: Sequence[float], max_rank: int | None
) -> tuple[Expert, float]:
    """Return the start plus the weighted task vectors of experts, and what cutting a LoRA's rank took of it.

    A LoRA has as many ranks as its members together, or ``max_rank``: padding, which aligns them, is cut off again.
    """
    found = added_up(Bank(materials.kind, experts), materials.start, weights)
    if not isinstance(materials.kind, Lora):
        return found, 0.0
    ranks = sum(len(next(iter(expert.values()))[A]) for expert in experts)
    found, error = truncate(found, min(ranks, max_rank or ranks))
    return found, round(error, DIGITS)
