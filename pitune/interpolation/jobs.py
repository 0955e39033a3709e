"""What is to be interpolated or merged: a target, its neighbours, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pitune.interpolation.settings import InterpolationSettings, SweepSettings
from pitune.store import Job
from pitune.tasks.task import Slice
from pitune.training.choice import ChoiceJob
from pitune.training.recipe import Recipe


class Neighbour(NamedTuple):
    """A source of a target: its slice, how similar it is, and its expert (an artifact)."""

    slice: str
    similarity: float
    expert: str


@dataclass(frozen=True)
class _Mixing(Job):
    """A target slice, its sources in the order in which they are taken (nearest first), and its own expert."""

    slice: Slice
    neighbours: tuple[Neighbour, ...]
    own: str

    def members(self, k: int) -> list[str]:
        """Return the slices whose experts are mixed: the first k sources and, last, the target itself."""
        return [near.slice for near in self.neighbours[:k]] + [str(self.slice)]

    def experts(self, k: int) -> list[str]:
        """Return their experts (artifacts)."""
        return [near.expert for near in self.neighbours[:k]] + [self.own]

    def similarities(self, k: int) -> Sequence[float]:
        """Return how similar the first k sources are."""
        return [near.similarity for near in self.neighbours[:k]]


@dataclass(frozen=True)
class TuningJob(_Mixing):
    """An interpolation to search and tune: steps, rows and schedule, how it is tuned, what is tried.

    ``method``: whose it is; the trials of two methods for one target lie apart.
    """

    recipe: Recipe
    interpolation: InterpolationSettings
    sweep: SweepSettings
    method: str


@dataclass(frozen=True)
class ControlJob(TuningJob):
    """A control of an interpolation: tuned once, by the setting that was chosen there, of other experts.

    Attributes:
        of: the interpolation (an artifact).
        randomized: the neighbours' experts give way to random ones of the same shapes and norms.
    """

    of: str
    randomized: bool


@dataclass(frozen=True)
class MergeJob(_Mixing):
    """A merge of sources' experts and the target's own, nothing tuned: of several, the best on validation data.

    Attributes:
        rule: how experts become one, of :data:`pitune.interpolation.merging.RULES`.
        tried: the settings, in the order in which they are tried: ``top_k``, and what the rule takes.
    """

    rule: str
    tried: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class AverageJob(Job):
    """An average of sources' experts, nearest first, each with its weight: nothing is chosen, no target is seen."""

    neighbours: tuple[Neighbour, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class WeightSearchJob(_Mixing):
    """Weights of experts to be found without gradients, for each of several settings.

    Attributes:
        tried: the settings: ``top_k``, ``own`` (whether the target's own expert is among them), ``penalty``.
        evaluations: of the loss on the shots, for each setting.
        rows: the shots that an evaluation sees at most.
    """

    tried: tuple[Mapping[str, Any], ...]
    evaluations: int
    rows: int


@dataclass(frozen=True)
class ProbeJob(Job):
    """A linear probe to fit on a target's shots, by so many strengths of its penalty at most."""

    slice: Slice
    trials: int


@dataclass(frozen=True)
class SharedChoiceJob(ChoiceJob):
    """A choice among experts that a target shares with others, by the target's own validation examples."""

    slice: Slice


@dataclass(frozen=True)
class StackingJob(ChoiceJob):
    """An average of what methods came to for a target, by their likelihood; ``max_rank`` as an interpolation has it."""

    slice: Slice
    max_rank: int | None


@dataclass(frozen=True)
class CrossfitJob(TuningJob):
    """What several methods came to for a target, to be judged by folds, and averaged.

    Attributes:
        tried: what ``single``, ``nearest`` and ``pi`` came to (artifacts).
        folds: into how many parts the shots are dealt; 0 of a full slice, which is judged by its validation examples.
        together: so many experts are tuned in one pass at most, as in a pack.
    """

    tried: tuple[str, ...]
    folds: int
    together: int
