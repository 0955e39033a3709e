"""Tune interpolations on their targets: the weights alone, or the weights and the experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pitune.backbones import Backbone
from pitune.errors import PituneError
from pitune.experts import Expert, ExpertKind
from pitune.interpolation.mixture import Mixture, SideBySide
from pitune.interpolation.settings import InterpolationSettings, Own, Start
from pitune.materials import Materials
from pitune.objectives import Acting, Objective, Row, Rows, right
from pitune.training.recipe import Recipe


@dataclass(frozen=True)
class Validation:
    """Scores of one validation: mean cross-entropy and the share of right answers."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Tuned:
    """A tuned interpolation: the mixture in its chosen state, its start, its curve and its chosen validation."""

    mixture: Mixture
    start: Tensor  # (sites, k + 1)
    curve: list[dict[str, float]]
    validation: Validation


def starting_logits(similarities: Sequence[float], temperature: float, start: Start, own: Own) -> Tensor:
    """Return alpha at the start, (k + 1,): similarity / temperature, or all zero.

    The own expert comes last. Trained beforehand, it is as similar to the target as can be: 1. Fresh, it knows nothing
    of it: 0. A trained one has fitted the very shots that the weights are learned on, which then have little left to
    say; a fresh one leaves the neighbours a reason to move. Which is better differs from target to target.
    """
    if start == "uniform":
        return torch.zeros(len(similarities) + 1)
    return torch.tensor([*similarities, 1.0 if own == "trained" else 0.0]) / temperature


@dataclass(frozen=True)
class Setting:
    """What a mixture acts on, and what is asked of it: the same for every target of a study.

    ``firsts``: the lowest layer with an expert, by tower.
    """

    backbone: Backbone
    kind: ExpertKind
    objective: Objective
    firsts: Mapping[str, int]

    @classmethod
    def of(cls, materials: Materials) -> Setting:
        """Return a study's."""
        return cls(materials.backbone, materials.kind, materials.objective, materials.firsts)

    def batch(self, groups: Sequence[Sequence[Row]]) -> Any:
        """Return a batch of a group of rows for each who acts."""
        return self.objective.collate(self.backbone, self.firsts, groups)


def validate_all(setting: Setting, acting: Acting, count: int, rows: Rows) -> list[Validation]:
    """Score ``count`` experts on ``rows`` in one pass: each batch has every expert's copy of the rows.

    Args:
        setting: what they act on, and what is asked.
        acting: who acts: a bank of ``count`` experts, or a mixture, which acts as one.
        count: E.
        rows: the same for all.
    """
    losses, hits = score_each(setting, acting, count, rows)
    pairs = zip(losses.mean(1).tolist(), hits.mean(1).tolist(), strict=True)
    return [Validation(loss, accuracy) for loss, accuracy in pairs]


@torch.no_grad()
def score_each(setting: Setting, acting: Acting, count: int, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the loss of each row, and whether it is answered right: (count, rows) each, float64, on the CPU.

    The arguments are those of :func:`validate_all`.
    """
    losses, hits = torch.zeros(2, count, len(rows), dtype=torch.float64)
    each = setting.backbone.scored_at_once(count, setting.firsts, acting.conditional)
    for begin in range(0, len(rows), each):
        chosen = range(begin, min(begin + each, len(rows)))
        groups = [rows.take(chosen)] * count
        found = setting.objective.answers(setting.backbone, acting, setting.batch(groups))
        losses[:, chosen.start : chosen.stop] = found.losses.cpu()
        hits[:, chosen.start : chosen.stop] = right(found, groups)
    return losses, hits


def validate(setting: Setting, mixture: Mixture, rows: Rows) -> Validation:
    """Score a mixture on ``rows``."""
    return validate_all(setting, mixture, 1, rows)[0]


@dataclass(frozen=True)
class Tuning:
    """A mixture to tune on a target slice.

    Attributes:
        experts: k + 1 experts, the target's own last.
        logits: alpha at the start, (k + 1,).
        train: the slice's training rows.
        recipe: steps, rows, schedule and selection, shared with the methods that this one is compared with.
        settings: granularity, learning rates and what is trained.
        name: the slice, which fixes the order of the rows.
    """

    experts: Sequence[Expert]
    logits: Tensor
    train: Rows
    recipe: Recipe
    settings: InterpolationSettings
    name: str


def tune(
    setting: Setting,
    tuning: Tuning,
    validation: Rows,
    report: Callable[[int, Validation], None] = lambda step, found: None,
    report_every: int | None = None,
) -> Tuned:
    """Tune a mixture.

    Args:
        setting: the backbone, the experts' kind, the objective.
        tuning: the mixture, and how it is tuned.
        validation: the slice's validation rows.
        report: called with the number of steps done and the mixture's scores on the validation rows.
        report_every: steps between reports; the last step is always reported. Reports select nothing.

    Raises:
        PituneError: a loss is not a number.
    """
    descent, recipe, name = _Descent(setting, tuning), tuning.recipe, tuning.name
    mixture = descent.mixture
    start = mixture.weights().detach().cpu()
    curve: list[dict[str, float]] = []
    best: tuple[float, dict[str, Tensor], Validation] | None = None
    for step in range(recipe.steps):
        point = {"step": step + 1, "loss": _step(setting, [descent], step)[0], "validation": math.nan}
        _check_finite(point["loss"], "loss", name, step)
        reports = report_every is not None and (step + 1) % report_every == 0
        if reports or recipe.validates(step):
            found = validate(setting, mixture, validation)
            _check_finite(found.loss, "validation loss", name, step)
            point["validation"] = found.loss
            if recipe.validates(step) and (best is None or recipe.select == "last" or found.loss < best[0]):
                best = found.loss, {key: value.clone() for key, value in mixture.state_dict().items()}, found
            if reports or step + 1 == recipe.steps:
                report(step + 1, found)
        curve.append(point)
    assert best is not None
    mixture.load_state_dict(best[1])
    return Tuned(mixture, start, curve, best[2])


def tune_together(setting: Setting, tunings: Sequence[Tuning], most: int) -> list[Expert | None]:
    """Tune several mixtures side by side, each to its last step, and return what they merge to.

    Each comes to what it comes to alone: it has rows, rates, a loss and a loss scale of its own. Nothing is validated.

    Args:
        setting: as :func:`tune` takes it.
        tunings: of as many members, steps and rows each.
        most: so many share a pass at most.

    Returns:
        An expert each; None where a loss was not a number.
    """
    descents = [_Descent(setting, one) for one in tunings]
    left = descents
    for step in range(tunings[0].recipe.steps if tunings else 0):
        losses = _step(setting, left, step, most)
        left = [one for one, loss in zip(left, losses, strict=True) if math.isfinite(loss)]
    return [one.mixture.merged() if one in left else None for one in descents]


def _check_finite(loss: float, what: str, name: str, step: int) -> None:
    if not math.isfinite(loss):
        raise PituneError(
            f"interpolation of {name}: the {what} is {loss} at step {step + 1}; "
            "lower its learning rate, interpolation.weights_learning_rate or interpolation.experts_rate"
        )


class _Descent:
    """A mixture, its order of rows and its optimizer."""

    def __init__(self, setting: Setting, tuning: Tuning) -> None:
        backbone, recipe, settings = setting.backbone, tuning.recipe, tuning.settings
        mixture = Mixture(backbone, setting.kind, tuning.experts, tuning.logits, settings.granularity)
        self.mixture = mixture.to(backbone.device)
        self._recipe, self._train = recipe, tuning.train
        self._order = tuning.train.order(tuning.name, recipe.steps, recipe.batch_size).tolist()
        self._optimizer = _optimizer(self.mixture, recipe, settings)
        # As the engine does for the other methods: small gradients are lost in fp16 unless the loss is scaled.
        self._scaler = torch.amp.GradScaler(backbone.device.type, enabled=backbone.is_fp16)

    def rows(self, step: int) -> list[Row]:
        """Return the rows of step ``step`` (from 0)."""
        return self._train.take(self._order[step])

    def scaled(self, loss: Tensor) -> Tensor:
        """Return what the backward pass begins with."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def move(self, step: int) -> None:
        """Take step ``step`` by the gradients that are there, and forget them."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * self._recipe.rate(step) / self._recipe.learning_rate
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()


def _step(setting: Setting, descents: Sequence[_Descent], step: int, most: int = 1) -> list[float]:
    """Take step ``step`` of each and return the losses; one whose loss is not a number stands still."""
    groups = [one.rows(step) for one in descents]
    each = _at_once(setting, groups, most)
    losses: list[float] = []
    for start in range(0, len(descents), each):
        part = descents[start : start + each]
        acting = SideBySide([one.mixture for one in part])
        found = setting.objective.losses(setting.backbone, acting, setting.batch(groups[start : start + each])).mean(1)
        values = found.tolist()
        moving = [place for place, value in enumerate(values) if math.isfinite(value)]
        if moving:
            scaled = [part[place].scaled(found[place]) for place in moving]
            torch.stack(scaled).sum().backward()  # type: ignore[no-untyped-call]
        for place in moving:
            part[place].move(step)
        losses += values
    return losses


def _at_once(setting: Setting, groups: Sequence[Sequence[Row]], most: int) -> int:
    """Return how many mixtures to put into one pass, in passes of like size: whose rows a processor's cache holds.

    They are ``most`` at most, for nobody reckons a task's memory. Where they act on texts, too, each goes alone: the
    texts are the larger part, and would take many times the memory.
    """
    if not groups or setting.objective.shares(setting.backbone, setting.firsts):
        return 1
    most = max(1, min(most, setting.backbone.rows_at_once // len(groups[0])))
    return math.ceil(len(groups) / math.ceil(len(groups) / most))


def _optimizer(mixture: Mixture, recipe: Recipe, settings: InterpolationSettings) -> torch.optim.Optimizer:
    groups = [{"params": [mixture.alpha], "peak": settings.weights_learning_rate, "weight_decay": 0.0}]
    if settings.train == "weights+experts":
        members = list(mixture.members.parameters())
        groups.append(
            {
                "params": members,
                "peak": settings.experts_rate * recipe.learning_rate,
                "weight_decay": recipe.weight_decay,
            }
        )
    else:
        mixture.members.requires_grad_(False)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)
