"""How experts are trained: the section ``training`` of a study."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pitune.backbones import Precision
from pitune.settings import Settings
from pitune.tasks.task import Slice
from pitune.training.recipe import Recipe


class TrainingSettings(Settings):
    """How experts are trained: recipes for whole tasks and for few shots, packs, precision, ZeRO."""

    full: Recipe = Recipe()
    few: Recipe = Recipe()
    shots: dict[Annotated[int, Field(ge=1)], Recipe] = Field(
        {}, description="recipes for some numbers of shots, in place of few"
    )
    pack_size: int = Field(6, ge=1, description="experts trained together")
    precision: Precision = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    gradient_accumulation: int = Field(1, ge=1)
    validation_examples: int = Field(256, ge=1, description="of a full slice: validated on so many at most")

    def recipe(self, chosen: Slice) -> Recipe:
        """Return how a slice is trained."""
        return self.full if chosen.shots is None else self.shots.get(chosen.shots, self.few)
