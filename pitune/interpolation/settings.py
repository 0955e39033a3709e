"""How a target's neighbours are interpolated and what is searched: the sections ``interpolation`` and ``sweep``."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pitune.settings import Settings

Granularity = Literal["site", "layer", "global"]
Start = Literal["similarity", "uniform"]
Own = Literal["trained", "fresh"]
"""The target's own expert in the mixture: trained on its shots (as in the paper), or at the common start."""


class InterpolationSettings(Settings):
    """How a target's neighbours are interpolated. Steps, rows, schedule and selection are those of its recipe."""

    granularity: Granularity = Field("site", description="one set of weights per site, per layer or one in all")
    start: Start = "similarity"
    train: Literal["weights", "weights+experts"] = "weights+experts"
    weights_learning_rate: float = Field(0.02, gt=0, description="of alpha")
    experts_rate: float = Field(0.5, gt=0, description="the experts' learning rate, as a share of the recipe's")
    max_rank: int | None = Field(None, ge=1, description="cut the merged LoRA to this rank by SVD; null: exact")


class SweepSettings(Settings):
    """What Ray Tune searches for each target: every combination of the four lists, with ASHA."""

    top_k: tuple[Annotated[int, Field(ge=1)], ...] = Field((3,), min_length=1)
    temperature: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.2,), min_length=1)
    own: tuple[Own, ...] = Field(
        ("trained", "fresh"), min_length=1, description="the own expert: trained on the shots, or at the common start"
    )
    rate: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0,), min_length=1, description="learning rates of weights and experts, as shares of the interpolation's"
    )
    validate_every: int = Field(20, ge=1, description="steps between the scores that ASHA sees")
    reduction_factor: int = Field(2, ge=2, description="ASHA goes on with the best one in so many")
    trials: int | None = Field(
        None, ge=1, description="settings that each other method tries at most; null: as many as are searched here"
    )
    folds: int = Field(2, ge=2, description="parts that a target's shots are dealt into, by which crossfit judges")
    aside: ClassVar[frozenset[str]] = frozenset({"trials", "folds"})

    @property
    def combinations(self) -> int:
        """How many trials a search has."""
        return math.prod(len(set(tried)) for tried in (self.top_k, self.temperature, self.own, self.rate))

    @property
    def budget(self) -> int:
        """How many settings every other method may try."""
        return self.trials or self.combinations
