"""How an expert is trained: the settings that packed training, baselines and interpolation share."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from pitune.settings import Settings


class Recipe(Settings):
    """Steps, rows, learning rate and which checkpoint counts."""

    steps: int = Field(60, ge=1, description="optimizer steps")
    batch_size: int = Field(16, ge=1, description="rows per expert and step, over all workers and accumulations")
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0)
    select: Literal["last", "best"] = Field("last", description="which checkpoint counts: best is on validation loss")
    validate_every: int | None = Field(None, ge=1, description="steps between validations; null: at the end only")

    def rate(self, step: int) -> float:
        """Return the learning rate of step ``step`` (from 0)."""
        rising = max(1, round(self.warmup * self.steps)) if self.warmup else 0
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        left = 1 - (step - rising) / max(1, self.steps - rising)
        share = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[self.schedule]
        return self.learning_rate * share

    def validates(self, step: int) -> bool:
        """Say whether validation follows step ``step`` (from 0); the last step's always does."""
        return step + 1 == self.steps or (self.validate_every is not None and (step + 1) % self.validate_every == 0)
