"""Packs: the slices whose experts are trained together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pitune.store import Job, fingerprint_of
from pitune.tasks.task import Slice
from pitune.training.recipe import Recipe
from pitune.training.settings import TrainingSettings


@dataclass(frozen=True)
class ExpertJob(Job):
    """An expert to train: its slice, and the artifact that it starts from (None: the common start)."""

    slice: Slice
    start: str | None = None


@dataclass(frozen=True)
class Pack:
    """Jobs that train together, by the same recipe."""

    name: str
    jobs: tuple[ExpertJob, ...]
    recipe: Recipe


LENGTHS = 1.5  # texts of a pack differ at most by this factor: shorter ones are padded to the longest


def make_packs(
    jobs: Sequence[ExpertJob], settings: TrainingSettings, lengths: Sequence[int], prefix: str
) -> list[Pack]:
    """Group jobs with the same recipe and texts of like lengths into packs, the most work first.

    Args:
        jobs: the experts to train.
        settings: the recipes and the size of a pack.
        lengths: of each job's texts.
        prefix: begins the packs' names.
    """
    packs: list[list[tuple[int, ExpertJob]]] = []
    for length, job in sorted(
        zip(lengths, jobs, strict=True), key=lambda pair: (pair[1].slice.shots or 0, *pair[:1], pair[1].slice)
    ):
        head = packs[-1][0] if packs else None
        if (
            head is not None
            and len(packs[-1]) < settings.pack_size
            and settings.recipe(head[1].slice) == settings.recipe(job.slice)
            and length <= LENGTHS * head[0]
        ):
            packs[-1].append((length, job))
        else:
            packs.append([(length, job)])
    # The most work first: then the gangs end at about the same time.
    packs.sort(key=lambda pack: -_work(settings.recipe(pack[0][1].slice), [length for length, _ in pack]))
    return [_pack(prefix, [job for _, job in pack], settings) for pack in packs]


def _pack(prefix: str, jobs: Sequence[ExpertJob], settings: TrainingSettings) -> Pack:
    """Name a pack by all that its checkpoints depend on: they are looked for by its name."""
    fingerprint = fingerprint_of(
        {
            "jobs": [job.fingerprint for job in jobs],
            "zero_stage": settings.zero_stage,
            "gradient_accumulation": settings.gradient_accumulation,
        }
    )
    return Pack(f"{prefix}-{fingerprint[:8]}", tuple(jobs), settings.recipe(jobs[0].slice))


def _work(recipe: Recipe, lengths: Sequence[int]) -> int:
    return recipe.steps * recipe.batch_size * sum(lengths)
