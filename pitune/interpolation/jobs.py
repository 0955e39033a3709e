"""What is to be interpolated: a target, its neighbours, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pitune.interpolation.settings import InterpolationSettings, SweepSettings
from pitune.store import Job
from pitune.tasks.task import Slice
from pitune.training.recipe import Recipe


class Neighbour(NamedTuple):
    """A source that is near a target: its slice, how similar it is, and its expert (an artifact)."""

    slice: str
    similarity: float
    expert: str


@dataclass(frozen=True)
class _Mixing(Job):
    """A target slice, its nearest sources, nearest first, and its own expert (an artifact)."""

    slice: Slice
    neighbours: tuple[Neighbour, ...]
    own: str

    def members(self, k: int) -> list[str]:
        """Return the slices whose experts are mixed: the k nearest and, last, the target itself."""
        return [near.slice for near in self.neighbours[:k]] + [str(self.slice)]

    def experts(self, k: int) -> list[str]:
        """Return their experts (artifacts)."""
        return [near.expert for near in self.neighbours[:k]] + [self.own]

    def similarities(self, k: int) -> Sequence[float]:
        """Return how similar the k nearest are."""
        return [near.similarity for near in self.neighbours[:k]]


@dataclass(frozen=True)
class TuningJob(_Mixing):
    """An interpolation to search and tune: steps, rows and schedule, how it is tuned, what is tried."""

    recipe: Recipe
    interpolation: InterpolationSettings
    sweep: SweepSettings


@dataclass(frozen=True)
class AverageJob(_Mixing):
    """A plain average, of as many neighbours as are best on validation data, among ``top_k``."""

    top_k: tuple[int, ...]
