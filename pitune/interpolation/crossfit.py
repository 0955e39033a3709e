"""Cross-fitting: what is made of several methods, judged by all examples that a target has.

The few validation examples of a target are a poor judge of methods. Here its shots are dealt into folds, too: each
method is fitted again on all examples but those of a fold, by the setting that it has chosen, and judged by them. So
each example has a loss under experts that have not learned from it. And as the experts of a method's folds have learned
from different examples, their average is better than one: it is what is kept of a method.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pitune.errors import PituneError
from pitune.experts import Bank, Expert
from pitune.experts.checkpoint import to_files
from pitune.interpolation.jobs import CrossfitJob
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
Fit = list[Expert | None]
"""What each method came to on a fold; None where it diverged."""


@dataclass(frozen=True)
class Judgement:
    """What out-of-fold losses say of methods, the first of which uses no other task.

    Attributes:
        losses: the mean loss of each; None where one is no number.
        gains: by how much each has less of it than the first; None likewise.
        errors: the standard errors of the gains, paired over examples; None likewise.
        chosen: which one is taken.
    """

    losses: list[float | None]
    gains: list[float | None]
    errors: list[float | None]
    chosen: int


def judge(losses: Tensor) -> Judgement:
    """Choose among methods by their out-of-fold losses, (methods, examples), of which those of the first are numbers.

    It is the best, if that gains more than one standard error over the first, else the first (after the rule of Breiman
    et al., Classification and Regression Trees, section 3.4.3). A method with a loss that is no number is out.
    """
    apart = losses[0] - losses
    gains, errors = apart.mean(1), apart.std(1) / losses.shape[1] ** 0.5
    best = int(gains.nan_to_num(nan=-math.inf).argmax())
    chosen = best if gains[best] > errors[best] else 0
    return Judgement(_numbers(losses.mean(1)), _numbers(gains), _numbers(errors), chosen)


def _numbers(values: Tensor) -> list[float | None]:
    """Return values as a manifest has them, None where one is no number."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def crossfit(materials: Materials, job: CrossfitJob) -> None:
    """Fit a target's methods on its folds, choose by what these hold out, and commit the average over the folds.

    Raises:
        PituneError: a method's expert is missing, or the first method diverges on a fold; another is then out.
    """
    began = time.perf_counter()
    found = manifests_of(materials, job.tried)
    folds = job.slice.dealt(job.folds)
    fits: list[Fit] = [[materials.expert(name) for name in job.tried], *_fitted(materials, job, folds, found)]
    scores = [_out_of_fold(materials, chosen, fit) for chosen, fit in zip((job.slice, *folds), fits, strict=True)]
    losses, hits = (torch.cat(parts, 1) for parts in zip(*scores, strict=True))
    if not losses[0].isfinite().all():
        raise PituneError(
            f"{job.artifacts[0]}: {job.tried[0]} has a loss that is no number on a fold; lower training.*.learning_rate"
        )
    said = judge(losses)
    members = [expert for fit in fits if (expert := fit[said.chosen])]
    expert, rank_error = averaged(materials, members, [1 / len(fits)] * len(fits), job.interpolation.max_rank)
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
        chosen=job.tried[said.chosen],
        helps=said.chosen > 0,
        tried=dict(zip(job.tried, said.losses, strict=True)),
        gains=dict(zip(job.tried, said.gains, strict=True)),
        errors=dict(zip(job.tried, said.errors, strict=True)),
        accuracies=dict(zip(job.tried, _numbers(hits.mean(1)), strict=True)),
        rank_error=rank_error,
        trials=took.trials + len(folds) * len(recipes),
        steps=took.steps + len(folds) * sum(recipe.steps for recipe in recipes),
        seconds=took.seconds + time.perf_counter() - began,
    )


def _fitted(materials: Materials, job: CrossfitJob, folds: Sequence[Slice], found: Mapping[str, Manifest]) -> list[Fit]:
    """Return what ``single``, ``nearest`` and ``pi`` come to on each fold, each by the setting that it chose.

    The experts of all folds are trained side by side, and then the mixtures. The own expert that ``pi`` mixes is the
    fold's, too: it has seen nothing of what is held out.
    """
    _, nearest, pi = (found[name] for name in job.tried)
    setting, recipes = Setting.of(materials), _recipes(job, found)
    starts = (materials.start, materials.expert(nearest["start"]), materials.start)[: len(recipes)]
    alone = [
        Tuning([start], torch.zeros(1), materials.rows(((fold, 1.0),), "train"), recipe, ALONE, str(fold))
        for fold in folds
        for start, recipe in zip(starts, recipes, strict=True)
    ]
    trained = tune_together(setting, alone)  # an expert that trains alone is a mixture of one
    fits = {fold: trained[place * len(recipes) :][: len(recipes)] for place, fold in enumerate(folds)}
    owns = {fold: own for fold, fit in fits.items() if (own := fit[2] if len(fit) > 2 else fit[0])}
    near = [materials.expert(one.expert) for one in job.neighbours[: pi["top_k"]]]
    chosen = (pi["top_k"], pi["temperature"], pi["own"], pi["rate"])
    mixing = [tuning(materials, replace(job, slice=fold), *chosen, [*near, own]) for fold, own in owns.items()]
    mixed = dict(zip(owns, tune_together(setting, mixing), strict=True))
    return [[*fit[:2], mixed.get(fold)] for fold, fit in fits.items()]


def _recipes(job: CrossfitJob, found: Mapping[str, Manifest]) -> list[Recipe]:
    """Return how the experts of a fold are trained: the single one, nearest's, and the own one that ``pi`` mixes.

    That is none of its own where ``pi`` mixes a fresh one, or where the single one was trained alike; else it may have
    another rate.
    """
    single, nearest, pi = (found[name] for name in job.tried)
    recipes = [Recipe.model_validate(made["recipe"]) for made in (single, nearest)]
    return recipes + [job.recipe] * (pi["own"] == "trained" and recipes[0] != job.recipe)


def _out_of_fold(materials: Materials, chosen: Slice, fit: Fit) -> tuple[Tensor, Tensor]:
    """Return the losses of experts on what their slice or fold holds out, and what they answer right; NaN of none."""
    rows = materials.rows(((chosen, 1.0),), "validation", again=False)
    known = [place for place, expert in enumerate(fit) if expert]
    losses, hits = torch.full((2, len(fit), len(rows)), math.nan, dtype=torch.float64)
    if known:
        bank = Bank(materials.kind, [expert for expert in fit if expert]).to(materials.backbone.device)
        losses[known], hits[known] = score_each(Setting.of(materials), bank, len(known), rows)
    return losses, hits
