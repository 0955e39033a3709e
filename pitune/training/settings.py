"""How experts are trained: the sections ``training``, ``joint`` and ``multitask`` of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pitune.backbones import Precision
from pitune.settings import Settings, at, shown
from pitune.tasks.task import Slice
from pitune.training.recipe import Recipe


class TrainingSettings(Settings):
    """How experts are trained: recipes for whole tasks and for few shots, packs, precision, ZeRO."""

    full: Recipe = Recipe()
    few: Recipe = Recipe()
    shots: dict[Annotated[int, Field(ge=1)], Recipe] = Field(
        {}, description="recipes for some numbers of shots, in place of few"
    )
    pack_size: int | None = Field(
        None, ge=1, description="experts trained together; null: 6, or as many of them as fit into a worker's memory"
    )
    precision: Precision = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    gradient_accumulation: int = Field(1, ge=1)
    validation_examples: int = Field(256, ge=1, description="of a full slice: validated on so many at most")

    def recipe(self, chosen: Slice) -> Recipe:
        """Return how a slice is trained."""
        return self.full if chosen.shots is None else self.shots.get(chosen.shots, self.few)


class MultitaskSettings(Settings):
    """How the data of several tasks are mixed for one expert (arXiv 1910.10683, section 3.5.2)."""

    mixing: Literal["size", "temperature", "uniform"] = Field(
        "temperature",
        description="how often a slice of n examples is drawn from: by n, by n^(1/temperature), or equally",
    )
    temperature: float = Field(2.0, gt=0, description="1 mixes by size, a high one equally")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.mixing != "temperature" and self.temperature != type(self).model_fields["temperature"].default:
            raise at("temperature", f"changes nothing where mixing is {self.mixing}; leave it out")
        return self

    def shares(self, sizes: Sequence[int]) -> list[float]:
        """Return which share of the rows is drawn from each of several slices with so many training examples."""
        power = {"size": 1.0, "temperature": 1 / self.temperature, "uniform": 0.0}[self.mixing]
        weights = [(size / max(sizes)) ** power for size in sizes]  # of the largest: no power of it is too large
        return [weight / sum(weights) for weight in weights]


class JointSettings(Settings):
    """Which targets share an expert."""

    groups: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] | None = Field(
        None,
        description="tasks whose targets share one, group by group, a task in no group is one of its own; "
        "null: groups are proposed by the task graph and chosen on validation data",
    )

    @field_validator("groups")
    @classmethod
    def _are_apart(cls, groups: tuple[tuple[str, ...], ...] | None) -> tuple[tuple[str, ...], ...] | None:
        for task, count in Counter(task for group in groups or () for task in group).items():
            if count > 1:
                raise ValueError(f"{shown(task)} is there twice; a task is in one group at most")
        return groups


class PairTraining(Settings):
    """How something small is learnt from pictures and their captions."""

    epochs: int = Field(20, ge=1, description="passes over the pairs; the best one on validation pairs is kept")
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0, description="at the start; it falls to zero along a cosine")
    dropout: float = Field(0.1, ge=0, lt=1)


class BridgeTraining(PairTraining):
    """How a projector is trained between a vision encoder and a text encoder."""

    grid: int = Field(4, ge=1, le=16, description="cells a side that a picture is cut into, each a token")
    hidden: int = Field(1024, ge=1, le=65536, description="the width between the projector's two layers")
