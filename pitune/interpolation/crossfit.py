"""Cross-fitting: what is made of several methods, judged by all examples that a target has.

The few validation examples of a target are a poor judge of methods. Here its shots are dealt into folds, too: each
method is fitted again on all examples but those of a fold, by the setting that it has chosen, and judged by them. So
each example has a loss under experts that have not learned from it. By these losses the methods share in the average of
all, in which the experts of a method's folds, that have learned from different examples, count alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pitune.errors import PituneError
from pitune.experts import Bank, Expert
from pitune.experts.checkpoint import to_files
from pitune.interpolation.jobs import CrossfitJob
from pitune.interpolation.merging import DIGITS
from pitune.interpolation.settings import InterpolationSettings
from pitune.interpolation.stacking import averaged
from pitune.interpolation.target import tuning
from pitune.interpolation.tune import Setting, Tuning, score_each, tune_together
from pitune.materials import Materials
from pitune.store.manifest import Manifest
from pitune.tasks.task import Slice
from pitune.training.choice import manifests_of, spent_together
from pitune.training.recipe import Recipe

ALONE = InterpolationSettings(granularity="global", experts_rate=1.0)
"""How a mixture of one expert is tuned as an expert is trained: at the recipe's own rate."""
DRAWS = 2000
"""So many times are the examples weighed anew; shares then are within about .01 of those of ever more draws."""
LEAST = 0.01
"""A share that is less is not worth its ranks."""
Fit = list[Expert | None]
"""What each method came to on a fold; None where it diverged."""


@dataclass(frozen=True)
class Judgement:
    """What out-of-fold losses say of methods, the first of which uses no other task.

    Attributes:
        losses: the mean loss of each; None where one is no number.
        gains: by how much each has less of it than the first; None likewise.
        errors: the standard errors of the gains, paired over examples; None likewise.
        weights: the share of each in the average, 0 or more; together 1, to six digits.
        helps: whether the best of them is clearly better than the first.
    """

    losses: list[float | None]
    gains: list[float | None]
    errors: list[float | None]
    weights: list[float]
    helps: bool


def judge(losses: Tensor) -> Judgement:
    """Judge methods by their out-of-fold losses, (methods, examples), of which those of the first are numbers.

    The best is clearly better if it gains more than one standard error over the first (after the rule of Breiman et
    al., Classification and Regression Trees, section 3.4.3). A method with a loss that is no number is out.
    """
    apart = losses[0] - losses
    gains, errors = apart.mean(1), apart.std(1) / losses.shape[1] ** 0.5
    best = int(gains.nan_to_num(nan=-math.inf).argmax())
    helps = bool(gains[best] > errors[best])
    return Judgement(_numbers(losses.mean(1)), _numbers(gains), _numbers(errors), shares(losses), helps)


def shares(losses: Tensor) -> list[float]:
    """Return each method's share by its losses, (methods, examples): pseudo-BMA+ (arXiv 1704.02030, section 3.4).

    A share is the likelihood of the examples under a method, among all methods', averaged over :data:`DRAWS` of the
    examples' weights (the Bayesian bootstrap): where other examples might well have said otherwise, methods share. A
    method with a loss that is no number has nothing, and what has less than :data:`LEAST` leaves it to the others.
    """
    count = losses.shape[1]
    drawn = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(count), DRAWS))
    likely = (-count * losses.double() @ drawn.T).nan_to_num(nan=-math.inf).softmax(0).mean(1)
    kept = torch.where(likely < LEAST, 0.0, likely)
    found: list[float] = (kept / kept.sum()).tolist()
    return [round(share, DIGITS) for share in found]


def _numbers(values: Tensor) -> list[float | None]:
    """Return values as a manifest has them, None where one is no number."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def crossfit(materials: Materials, job: CrossfitJob) -> None:
    """Fit a target's methods on its folds, and commit the average of all, shared by what the folds hold out.

    Raises:
        PituneError: a method's expert is missing, or the first method diverges on a fold; another is then out.
    """
    began = time.perf_counter()
    found = manifests_of(materials, job.tried)
    fits = fit_folds(materials, job, found)
    scores = [out_of_fold(materials, chosen, fit) for chosen, fit in fits.items()]
    losses, hits = (torch.cat(parts, 1) for parts in zip(*scores, strict=True))
    if not losses[0].isfinite().all():
        raise PituneError(
            f"{job.artifacts[0]}: {job.tried[0]} has a loss that is no number on held-out examples; "
            "lower training.*.learning_rate"
        )
    said = judge(losses)
    expert, rank_error = average(materials, list(fits.values()), said.weights, job.interpolation.max_rank)
    took = spent_together(list(found.values()))
    recipes = [*_recipes(job, found), job.recipe]
    materials.store.commit(
        job.artifacts[0],
        to_files(materials.kind, expert, materials.settings.uri),
        job.fingerprint,
        inputs=job.inputs,
        slice=str(job.slice),
        folds=job.folds,
        examples=losses.shape[1],
        members=list(job.tried),
        weights=said.weights,
        helps=said.helps,
        tried=dict(zip(job.tried, said.losses, strict=True)),
        gains=dict(zip(job.tried, said.gains, strict=True)),
        errors=dict(zip(job.tried, said.errors, strict=True)),
        accuracies=dict(zip(job.tried, _numbers(hits.mean(1)), strict=True)),
        rank_error=rank_error,
        trials=took.trials + job.folds * len(recipes),
        steps=took.steps + job.folds * sum(recipe.steps for recipe in recipes),
        seconds=took.seconds + time.perf_counter() - began,
    )


def fit_folds(materials: Materials, job: CrossfitJob, found: Mapping[str, Manifest]) -> dict[Slice, Fit]:
    """Return what ``single``, ``nearest`` and ``pi`` came to on a target, and what they come to on each fold of it.

    The experts of all folds are trained side by side, and then the mixtures. The own expert that ``pi`` mixes is the
    fold's, too: it has seen nothing of what is held out. ``found`` are the manifests of what they came to.

    Raises:
        PituneError: a method's expert is missing.
    """
    folds = job.slice.dealt(job.folds)
    _, nearest, pi = (found[name] for name in job.tried)
    setting, recipes = Setting.of(materials), _recipes(job, found)
    starts = (materials.start, materials.expert(nearest["start"]), materials.start)[: len(recipes)]
    alone = [
        Tuning([start], torch.zeros(1), materials.rows(((fold, 1.0),), "train"), recipe, ALONE, str(fold))
        for fold in folds
        for start, recipe in zip(starts, recipes, strict=True)
    ]
    trained = tune_together(setting, alone, job.together)  # an expert that trains alone is a mixture of one
    fits = {fold: trained[place * len(recipes) :][: len(recipes)] for place, fold in enumerate(folds)}
    owns = {fold: own for fold, fit in fits.items() if (own := fit[2] if len(fit) > 2 else fit[0])}
    near = [materials.expert(one.expert) for one in job.neighbours[: pi["top_k"]]]
    chosen = (pi["top_k"], pi["temperature"], pi["own"], pi["rate"])
    mixing = [tuning(materials, replace(job, slice=fold), *chosen, [*near, own]) for fold, own in owns.items()]
    mixed = dict(zip(owns, tune_together(setting, mixing, job.together), strict=True))
    finished: Fit = [materials.expert(name) for name in job.tried]
    return {job.slice: finished, **{fold: [*fit[:2], mixed.get(fold)] for fold, fit in fits.items()}}


def _recipes(job: CrossfitJob, found: Mapping[str, Manifest]) -> list[Recipe]:
    """Return how the experts of a fold are trained: the single one, nearest's, and the own one that ``pi`` mixes.

    That is none of its own where ``pi`` mixes a fresh one, or where the single one was trained alike; else it may have
    another rate.
    """
    single, nearest, pi = (found[name] for name in job.tried)
    recipes = [Recipe.model_validate(made["recipe"]) for made in (single, nearest)]
    return recipes + [job.recipe] * (pi["own"] == "trained" and recipes[0] != job.recipe)


def out_of_fold(materials: Materials, chosen: Slice, fit: Fit) -> tuple[Tensor, Tensor]:
    """Return the losses of experts on what their slice or fold holds out, and what they answer right; NaN of none."""
    rows = materials.rows(((chosen, 1.0),), "validation", again=False)
    known = [place for place, expert in enumerate(fit) if expert]
    losses, hits = torch.full((2, len(fit), len(rows)), math.nan, dtype=torch.float64)
    if known:
        bank = Bank(materials.kind, [expert for expert in fit if expert]).to(materials.backbone.device)
        losses[known], hits[known] = score_each(Setting.of(materials), bank, len(known), rows)
    hits[~losses.isfinite()] = math.nan
    return losses, hits


def average(
    materials: Materials, fits: Sequence[Fit], weights: Sequence[float], max_rank: int | None
) -> tuple[Expert, float]:
    """Return the average of methods by weight and of folds alike, and what cutting its rank took; see ``averaged``."""
    held = [(one, share / len(fits)) for fit in fits for one, share in zip(fit, weights, strict=True) if one and share]
    return averaged(materials, [one for one, _ in held], [share for _, share in held], max_rank)
