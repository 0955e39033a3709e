"""Cross-fitting: what is made of several methods, judged by all examples that a target has.

The few validation examples of a target are a poor judge of methods. Here its shots are dealt into folds, too: each
method is fitted again on all examples but those of a fold, by the setting that it has chosen, and judged by them. So
each example has a loss under experts that have not learned from it. And as the experts of a method's folds have learned
from different examples, their average is better than one: it is what is kept of a method.
"""

from __future__ import annotations

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
from pitune.interpolation.target import attempt
from pitune.interpolation.tune import Setting, score_each, tune
from pitune.materials import Materials
from pitune.store.manifest import Manifest
from pitune.tasks.task import Slice
from pitune.training.choice import manifests_of, spent_together
from pitune.training.recipe import Recipe

ALONE = InterpolationSettings(granularity="global", experts_rate=1.0)
"""How a mixture of one expert is tuned as an expert is trained: at the recipe's own rate."""


@dataclass(frozen=True)
class Judgement:
    """What out-of-fold losses say of methods, the first of which uses no other task.

    Attributes:
        losses: the mean loss of each.
        gains: by how much each has less of it than the first.
        errors: the standard errors of the gains, paired over examples.
        chosen: which one is taken.
    """

    losses: list[float]
    gains: list[float]
    errors: list[float]
    chosen: int


def judge(losses: Tensor) -> Judgement:
    """Choose among methods by their out-of-fold losses, (methods, examples).

    It is the best, if that gains more than one standard error over the first, else the first (after the rule of Breiman
    et al., Classification and Regression Trees, section 3.4.3).
    """
    apart = losses[0] - losses
    gains, errors = apart.mean(1), apart.std(1) / losses.shape[1] ** 0.5
    best = int(gains.argmax())
    chosen = best if gains[best] > errors[best] else 0
    return Judgement(losses.mean(1).tolist(), gains.tolist(), errors.tolist(), chosen)


def crossfit(materials: Materials, job: CrossfitJob) -> None:
    """Fit a target's methods on its folds, choose by what these hold out, and commit the average over the folds.

    Raises:
        PituneError: a method's expert is missing, or one of a fold comes to no number.
    """
    began = time.perf_counter()
    found = manifests_of(materials, job.tried)
    folds = job.slice.dealt(job.folds)
    fits = [[materials.expert(name) for name in job.tried], *(_fitted(materials, job, fold, found) for fold in folds)]
    scores = [_out_of_fold(materials, chosen, fit) for chosen, fit in zip((job.slice, *folds), fits, strict=True)]
    losses, hits = (torch.cat(parts, 1) for parts in zip(*scores, strict=True))
    if not losses.isfinite().all():
        raise PituneError(f"{job.artifacts[0]}: a loss on a held-out example is no number; its experts diverged")
    said = judge(losses)
    members = [fit[said.chosen] for fit in fits]
    expert, rank_error = averaged(materials, members, [1 / len(fits)] * len(fits), job.interpolation.max_rank)
    took = spent_together(list(found.values()))
    recipes = [*(_recipe(found[name]) for name in job.tried[:2]), *[job.recipe] * (1 + _trains_own(job, found))]
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
        accuracies=dict(zip(job.tried, hits.mean(1).tolist(), strict=True)),
        rank_error=rank_error,
        trials=took.trials + len(folds) * len(recipes),
        steps=took.steps + len(folds) * sum(recipe.steps for recipe in recipes),
        seconds=took.seconds + time.perf_counter() - began,
    )


def _fitted(materials: Materials, job: CrossfitJob, fold: Slice, found: Mapping[str, Manifest]) -> list[Expert]:
    """Return what ``single``, ``nearest`` and ``pi`` come to on a fold, each by the setting that it chose.

    The own expert that ``pi`` mixes is the fold's, too: it has seen nothing of what is held out.
    """
    single, nearest, pi = (found[name] for name in job.tried)
    alone = _alone(materials, fold, materials.start, _recipe(single))
    own = _alone(materials, fold, materials.start, job.recipe) if _trains_own(job, found) else alone
    started = _alone(materials, fold, materials.expert(nearest["start"]), _recipe(nearest))
    mixed = [*(materials.expert(near.expert) for near in job.neighbours[: pi["top_k"]]), own]
    turned = replace(job, slice=fold, recipe=_to_the_end(job.recipe))
    setting = (pi["top_k"], pi["temperature"], pi["own"], pi["rate"])
    tuned = attempt(materials, turned, *setting, lambda step, score: None, mixed)
    return [alone, started, tuned.mixture.merged()]


def _trains_own(job: CrossfitJob, found: Mapping[str, Manifest]) -> bool:
    """Say whether ``pi`` mixes an own expert that is not the single one: that may have chosen another rate."""
    single, _, pi = (found[name] for name in job.tried)
    return pi["own"] == "trained" and _recipe(single) != job.recipe


def _alone(materials: Materials, fold: Slice, start: Expert, recipe: Recipe) -> Expert:
    """Train an expert on a fold as one is on its slice; alone it is a mixture of one."""
    train, held = (materials.rows(((fold, 1.0),), role) for role in ("train", "validation"))
    parts = (torch.zeros(1), train, held, _to_the_end(recipe), ALONE)
    return tune(Setting.of(materials), [start], *parts, str(fold)).mixture.merged()


def _recipe(made: Manifest) -> Recipe:
    return Recipe.model_validate(made["recipe"])


def _to_the_end(recipe: Recipe) -> Recipe:
    """Return a recipe whose last step counts: what a fold holds out is to judge, and so must not choose."""
    return recipe.model_copy(update={"select": "last", "validate_every": None})


def _out_of_fold(materials: Materials, chosen: Slice, experts: Sequence[Expert]) -> tuple[Tensor, Tensor]:
    """Return the losses of experts on what their slice or fold holds out, and what they answer right."""
    bank = Bank(materials.kind, experts).to(materials.backbone.device)
    return score_each(
        Setting.of(materials), bank, len(experts), materials.rows(((chosen, 1.0),), "validation", again=False)
    )
