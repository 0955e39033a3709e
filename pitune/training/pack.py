"""Packs: the experts that are trained together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from pitune.materials import Data
from pitune.store import Job, fingerprint_of
from pitune.training.recipe import Recipe
from pitune.training.settings import TrainingSettings

if TYPE_CHECKING:
    from pitune.experts import ExpertKind  # brings torch, which a plan does without


@dataclass(frozen=True)
class ExpertJob(Job):
    """An expert to train.

    Attributes:
        name: what it is trained on, in words; fixes the order of its rows.
        data: slices with their weights, one slice in the common case.
        recipe: how.
        start: the expert (an artifact) that it starts from; None: the common start.
        length: the mean cost of its rows.
        may_fail: it is one of several trials: a loss that is no number is written down, and is no error.
        kind: of the expert, where it is not the study's; it then trains alone.
    """

    name: str
    data: Data
    recipe: Recipe
    start: str | None = None
    length: int = 1
    may_fail: bool = False
    kind: ExpertKind | None = None

    @property
    def work(self) -> int:
        """How much there is to compute: rows times their cost."""
        return self.recipe.steps * self.recipe.batch_size * self.length


@dataclass(frozen=True)
class Pack:
    """Jobs that train together, by the same recipe."""

    name: str
    jobs: tuple[ExpertJob, ...]

    @property
    def recipe(self) -> Recipe:
        """How all of them are trained."""
        return self.jobs[0].recipe

    def halves(self) -> tuple[Pack, ...]:
        """Return the pack as two, of half as many jobs; of one job as none."""
        half = (len(self.jobs) + 1) // 2
        parts = (self.jobs[:half], self.jobs[half:]) if len(self.jobs) > 1 else ()
        return tuple(Pack(f"{self.name}-{number}", jobs) for number, jobs in enumerate(parts, 1))


PACK_SIZE = 6
"""Experts of a pack at most, where the settings do not say."""
LENGTHS = 1.5
"""Rows of a pack's experts differ in mean cost at most by this factor: cheap ones are padded to the dearest."""


def make_packs(
    jobs: Sequence[ExpertJob], settings: TrainingSettings, fits: Callable[[Sequence[ExpertJob]], bool] | None = None
) -> list[Pack]:
    """Group jobs with the same recipe and rows of like cost into packs, the most work first, trials last.

    Jobs that start from other experts and have the same rows, the pairs of one target, come into the same pack, or into
    as few of like size as hold them.

    Args:
        jobs: what is to be trained.
        settings: their ``pack_size`` is taken as it is.
        fits: where they have none, says whether jobs fit into memory together; one alone is tried. None: all do.
    """
    size = settings.pack_size or PACK_SIZE
    bound = None if settings.pack_size else fits

    def most(job: ExpertJob) -> int:
        return max((count for count in range(1, size + 1) if bound([job] * count)), default=1) if bound else size

    packs: list[list[ExpertJob]] = []
    for part in _inseparable([job for job in jobs if job.kind is None], most):
        head = packs[-1][0] if packs else None
        if (
            head is not None
            and len(packs[-1]) + len(part) <= size
            and head.recipe == part[0].recipe
            and (head.start is None) == (part[0].start is None)
            and part[0].length <= LENGTHS * head.length
            and (bound is None or bound([*packs[-1], *part]))
        ):
            packs[-1] += part
        else:
            packs.append(part)
    packs += [[job] for job in jobs if job.kind is not None]
    # Trials last, for less depends on them; the most work first: then the gangs end at about the same time.
    packs.sort(key=lambda pack: (all(job.may_fail for job in pack), -sum(job.work for job in pack)))
    return [_named(pack, settings) for pack in packs]


def _inseparable(jobs: Sequence[ExpertJob], most: Callable[[ExpertJob], int]) -> Iterator[list[ExpertJob]]:
    """Yield the jobs in the order in which packs take them, those that belong into one pack together.

    How jobs of the same rows are split stays when one of their packs is done: its checkpoints are looked for by name.
    """

    def order(job: ExpertJob) -> tuple[str, bool, int, str]:
        return job.recipe.model_dump_json(), job.start is not None, job.length, job.name

    in_order = sorted(jobs, key=lambda job: (order(job), job.artifacts))
    for _, same in groupby(in_order, key=lambda job: (order(job), job.data)):
        left = list(same)
        limit = most(left[0])
        while left:
            packs = -(-len(left) // limit)
            size = -(-len(left) // packs)
            yield left[:size]
            left = left[size:]


def _named(jobs: Sequence[ExpertJob], settings: TrainingSettings) -> Pack:
    """Name a pack by all that its checkpoints depend on: they are looked for by its name."""
    fingerprint = fingerprint_of(
        {
            "jobs": [job.fingerprint for job in jobs],
            "zero_stage": settings.zero_stage,
            "gradient_accumulation": settings.gradient_accumulation,
        }
    )
    return Pack(f"pack-{fingerprint[:12]}", tuple(jobs))
