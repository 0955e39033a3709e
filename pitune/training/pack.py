"""Packs: the slices whose experts are trained together, and the work that a gang does on one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pitune.config import TrainingSettings
from pitune.errors import PituneError
from pitune.experts.checkpoint import to_files
from pitune.materials import Materials
from pitune.store import Job, table_bytes
from pitune.tasks.task import Slice
from pitune.training.engine import EngineSettings
from pitune.training.loop import Member, PackTraining, Seat, Trained
from pitune.training.recipe import Recipe


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


class ExpertTraining:
    """A gang's work: train a pack and commit its experts. Small and picklable until opened."""

    def __init__(self, materials: Materials, checkpoint_every: int | None = 500) -> None:
        self.materials = materials
        self.checkpoint_every = checkpoint_every

    def open(self, seat: Seat) -> None:
        """Load the backbone; called once per worker."""
        _ = self.materials.start

    def train(self, pack: Pack, seat: Seat) -> None:
        """Train ``pack`` and commit, on rank 0, every expert that has come out well.

        Raises:
            PituneError: the loss of some expert was not a number; the others are committed all the same.
        """
        began = time.perf_counter()
        config = self.materials.config
        training = PackTraining(
            self.materials.backbone,
            config.expert,
            [self._member(job, pack.recipe) for job in pack.jobs],
            pack.recipe,
            EngineSettings(
                zero_stage=config.training.zero_stage,
                gradient_accumulation=config.training.gradient_accumulation,
                weight_decay=pack.recipe.weight_decay,
                scale_losses=config.training.precision == "fp16",
            ),
            seat,
            self.checkpoint_every,
        )
        outcomes = training.run()
        self.materials.forget_rows()
        if seat.rank == 0:
            seconds = (time.perf_counter() - began) / len(pack.jobs)
            for job, outcome in zip(pack.jobs, outcomes, strict=True):
                if outcome.error is None:
                    self._commit(pack, job, outcome, seconds)
        errors = [outcome.error for outcome in outcomes if outcome.error]
        if errors:
            raise PituneError("; ".join(errors))

    def _member(self, job: ExpertJob, recipe: Recipe) -> Member:
        examples = len(self.materials.data(job.slice).train)
        seen_again = recipe.steps * recipe.batch_size >= 2 * examples
        start = self.materials.expert(job.start) if job.start else self.materials.start
        return Member(
            str(job.slice),
            start,
            self.materials.rows(job.slice, "train", keep=seen_again),
            self.materials.rows(job.slice, "validation"),
        )

    def _commit(self, pack: Pack, job: ExpertJob, outcome: Trained, seconds: float) -> None:
        config = self.materials.config
        files = to_files(config.expert, outcome.expert, config.backbone.uri)
        self.materials.store.commit(
            job.artifacts[0],
            {**files, "curve.parquet": table_bytes(outcome.curve)},
            job.mark,
            inputs=job.inputs,
            slice=str(job.slice),
            start=job.start or "common",
            pack=pack.name,
            recipe=pack.recipe.model_dump(),
            selection=pack.recipe.select,
            step=outcome.step,
            validation=outcome.validation,
            precision=config.training.precision,
            zero_stage=config.training.zero_stage,
            seconds=seconds,
        )


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
    return [
        Pack(f"{prefix}-{number:03d}", tuple(job for _, job in pack), settings.recipe(pack[0][1].slice))
        for number, pack in enumerate(packs)
    ]


def _work(recipe: Recipe, lengths: Sequence[int]) -> int:
    return recipe.steps * recipe.batch_size * sum(lengths)
