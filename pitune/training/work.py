"""The work that a gang does: train a pack and commit its experts."""

from __future__ import annotations

import time

from pitune.errors import OutOfMemory
from pitune.experts.checkpoint import to_files
from pitune.materials import Materials
from pitune.store import table_bytes
from pitune.training.engine import EngineSettings, start_distributed
from pitune.training.log import PackLog
from pitune.training.loop import Member, PackTraining, Seat, Trained
from pitune.training.memory import ran_out
from pitune.training.pack import ExpertJob, Pack
from pitune.training.settings import TrainingSettings


class ExpertTraining:
    """A gang's work: train a pack and commit its experts. Small and picklable until opened."""

    def __init__(self, materials: Materials, training: TrainingSettings, checkpoint_every: int | None = 500) -> None:
        self.materials, self.training = materials, training
        self.checkpoint_every = checkpoint_every

    def open(self, seat: Seat) -> None:
        """Load the backbone and DeepSpeed; called once per worker, before the first pack is known."""
        _ = self.materials.start
        start_distributed(self.materials.backbone.device)

    def train(self, pack: Pack, seat: Seat) -> dict[str, str]:
        """Train ``pack`` and commit, on rank 0, every expert that has come out well.

        A worker that died between a commit and the word of it has left nothing to do: what is there stays.

        Returns:
            The error of each expert whose loss was not a number, by its artifact; but for trials, which may fail.

        Raises:
            OutOfMemory: it does not fit; nothing is committed, and the backbone may not be as it was.
        """
        began = time.perf_counter()
        if all(map(self._is_there, pack.jobs)):
            return {}
        try:
            outcomes = self._trained(pack, seat)
        except Exception as error:
            if not ran_out(error):
                raise
            raise OutOfMemory(
                f"expert {pack.jobs[0].name}: a step of {len(pack.jobs)} x {pack.recipe.batch_size} rows does not fit "
                "into memory; lower training.*.batch_size, or raise training.gradient_accumulation"
            ) from error
        if seat.rank == 0:
            seconds = (time.perf_counter() - began) / len(pack.jobs)
            for job, outcome in zip(pack.jobs, outcomes, strict=True):
                if (outcome.error is None or job.may_fail) and not self._is_there(job):
                    self._commit(pack, job, outcome, seconds)
        pairs = [pair for pair in zip(pack.jobs, outcomes, strict=True) if not pair[0].may_fail]
        return {job.artifacts[0]: outcome.error for job, outcome in pairs if outcome.error is not None}

    def _is_there(self, job: ExpertJob) -> bool:
        return self.materials.store.is_current(job.artifacts[0], job.fingerprint)

    def _trained(self, pack: Pack, seat: Seat) -> list[Trained]:
        return PackTraining(
            self.materials.backbone,
            pack.jobs[0].kind or self.materials.kind,
            self.materials.objective,
            [self._member(job) for job in pack.jobs],
            pack.recipe,
            EngineSettings(
                zero_stage=self.training.zero_stage,
                gradient_accumulation=self.training.gradient_accumulation,
                weight_decay=pack.recipe.weight_decay,
                scale_losses=self.training.precision == "fp16",
            ),
            seat,
            self.checkpoint_every,
            PackLog(self.materials.store, pack.name, [job.artifacts[0] for job in pack.jobs]),
        ).run()

    def _member(self, job: ExpertJob) -> Member:
        examples = sum(len(self.materials.data(chosen).train) for chosen, _ in job.data)
        again = job.recipe.steps * job.recipe.batch_size >= 2 * examples
        common = job.kind.start(self.materials.backbone) if job.kind else self.materials.start
        start = self.materials.expert(job.start) if job.start else common
        train, validation = (
            self.materials.rows(job.data, "train", again),
            self.materials.rows(job.data, "validation", again=job.recipe.validate_every is not None),
        )
        return Member(job.name, start, train, validation)

    def _commit(self, pack: Pack, job: ExpertJob, outcome: Trained, seconds: float) -> None:
        files = to_files(job.kind or self.materials.kind, outcome.expert, self.materials.settings.uri)
        failed = outcome.error is not None
        self.materials.store.commit(
            job.artifacts[0],
            {**files, "curve.parquet": table_bytes(outcome.curve)},
            job.fingerprint,
            inputs=job.inputs,
            data=[[str(chosen), weight] for chosen, weight in job.data],
            start=job.start or "common",
            pack=pack.name,
            recipe=pack.recipe.model_dump(),
            selection=pack.recipe.select,
            step=outcome.step,
            validation=dict.fromkeys(outcome.validation) if failed else outcome.validation,
            precision=self.training.precision,
            zero_stage=self.training.zero_stage,
            trials=1,
            steps=pack.recipe.steps,
            seconds=seconds,
            **({"error": outcome.error} if failed else {}),
        )
