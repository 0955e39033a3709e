"""The study: its stages in order. Each makes what is missing and leaves what is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pitune.config import StudyConfig
from pitune.embedding.embed import embed
from pitune.embedding.graph import as_rows, read_embedding, task_graph
from pitune.errors import PituneError
from pitune.interpolation.scoring import ScoringJob, score
from pitune.interpolation.target import average
from pitune.plan import GRAPH, RESULTS, Plan, missing
from pitune.report import write_report
from pitune.results import drop_old_results, write_results, write_slices
from pitune.runtime.cluster import check_room, connect
from pitune.runtime.fanout import fan_out
from pitune.runtime.gangs import GangSettings, run_packs
from pitune.runtime.queue import Snapshot
from pitune.runtime.sweep import search
from pitune.store import Job, fingerprint_of, table_bytes
from pitune.tasks.task import Slice
from pitune.training.pack import ExpertJob, make_packs
from pitune.training.work import ExpertTraining

TOGETHER = 6  # experts of one task scored in one pass


class Progress(Protocol):
    """Who is told how far the study is."""

    def stage(self, name: str, total: int, there: int) -> None:
        """A stage begins; ``there`` of ``total`` artifacts are there already."""

    def update(self, done: float, total: float, running: Sequence[str]) -> None:
        """The stage has come so far, and works on these."""


class Study:
    """One configuration and everything made from it.

    Args:
        config: the study.

    Raises:
        PituneError: the study's folder cannot be written.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.plan = Plan.of(config)
        self.store, self.materials = self.plan.store, self.plan.materials

    def run(self, progress: Progress, address: str | None = None) -> None:
        """Make everything that is missing, on a local Ray or on the cluster at ``address``.

        Raises:
            PituneError: another process works on the study; or something failed, the rest of its stage being done.
        """
        self._open()
        with self.store.lock():
            self.store.write("study.yaml", self.config.yaml().encode())
            drop_old_results(self.plan)
            write_slices(self.plan)
            if any(item.state != "done" for item in self.plan.items() if item.artifact != RESULTS):
                with connect(address):
                    self._stages(progress)
            write_results(self.plan)
            write_report(self.store)

    def _open(self) -> None:
        """Draw every slice and open the backbone: what is wrong with one is told before anything is written."""
        self.plan.draw()
        _ = self.materials.start

    def _stages(self, progress: Progress) -> None:
        check_room(self.config.runtime.cpus_per_worker, self.config.runtime.gpus_per_worker)
        self._train(self.plan.experts(), "experts", progress)
        self._embed(progress)
        self._make_graph()
        self._train(self.plan.nearest(), "nearest", progress)
        self._average(progress)
        self._interpolate(progress)
        self._predict(progress)

    # --- stages ------------------------------------------------------------------------------------------------

    def _train(self, jobs: Sequence[ExpertJob], stage: str, progress: Progress) -> None:
        """Train the missing experts, in packs, by gangs."""
        wanted = self._begin(stage, jobs, progress)
        if not wanted:
            return
        packs = make_packs(wanted, self.config.training)
        runtime = self.config.runtime
        with self.store.scratch("train") as storage:
            settings = GangSettings(
                workers=runtime.workers,
                cpus_per_worker=runtime.cpus_per_worker,
                gpus_per_worker=runtime.gpus_per_worker,
                gangs=runtime.gangs,
                storage=storage,
                name=stage,
            )
            work = ExpertTraining(self.materials, self.config.training)
            names = {pack.name: _listed([job.name for job in pack.jobs]) for pack in packs}
            errors = run_packs(packs, work, settings, lambda snapshot: _tell_packs(progress, snapshot, names))
            _raise(stage, errors, len(packs), "packs")

    def _embed(self, progress: Progress) -> None:
        """Compute the missing task embeddings, as Ray tasks."""
        jobs = {str(job.slice): job for job in self._begin("embeddings", self.plan.embeddings(), progress)}
        self._fan_out("embeddings", embed, jobs, progress)

    def _make_graph(self) -> None:
        inputs = self.plan.graph_inputs()
        if not self.plan.graph_is_current():
            embeddings = {str(job.slice): read_embedding(self.store, str(job.slice)) for job in self.plan.embeddings()}
            edges = task_graph(embeddings, self.config.sources, self.config.embedding.similarity)
            self.store.commit(GRAPH, {"": table_bytes(as_rows(edges))}, fingerprint_of(inputs), inputs=inputs)

    def _average(self, progress: Progress) -> None:
        """Average each target's neighbours and its own expert."""
        jobs = {str(job.slice): job for job in self._begin("uniform", self.plan.averages(), progress)}
        self._fan_out("uniform", average, jobs, progress)

    def _interpolate(self, progress: Progress) -> None:
        """Search top-k, temperature and the own expert's start for each target, with Ray Tune."""
        targets = self._begin("interpolations", self.plan.targets(), progress)
        if not targets:
            return
        with self.store.scratch("tune") as storage:
            errors = search(targets, self.materials, self.config.runtime, storage, progress.update)
            _raise("interpolations", errors, len(targets), "targets")

    def _predict(self, progress: Progress) -> None:
        """Score every method on the whole test splits; experts of one task share a pass."""
        by_task: dict[str, list[ScoringJob]] = {}
        for one in self._begin("predictions", self.plan.predictions(), progress):
            by_task.setdefault(one.task, []).append(one)
        jobs, sizes = {}, {}
        for task, wanted in sorted(by_task.items(), key=lambda pair: -self._test_size(pair[0])):
            for start in range(0, len(wanted), TOGETHER):
                part = wanted[start : start + TOGETHER]
                name = f"{task} {start + 1}–{start + len(part)}"
                jobs[name], sizes[name] = part, len(part) * self._test_size(task)
        self._fan_out("predictions", score, jobs, progress, sizes)

    def _test_size(self, task: str) -> int:
        """Return how much a task has to score: the long jobs go first."""
        return len(self.materials.task(task).splits["test"]) * self.plan.length(Slice(task, None, 0))

    def _fan_out(
        self,
        stage: str,
        function: Callable[..., None],
        jobs: Mapping[str, Any],
        progress: Progress,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        """Run a stage's jobs as Ray tasks; ``sizes`` is how much of the stage each of them is."""
        if not jobs:
            return
        sizes = sizes or dict.fromkeys(jobs, 1)
        of = sum(sizes.values())

        def tell(waiting: Sequence[str]) -> None:
            progress.update(of - sum(sizes[name] for name in waiting), of, waiting)

        errors = fan_out(function, self.materials, jobs, self.config.runtime, tell)
        _raise(stage, errors, len(jobs), "jobs")

    def _begin(self, stage: str, jobs: Sequence[Job], progress: Progress) -> list:  # type: ignore[type-arg]
        wanted = missing(self.store, jobs)
        progress.stage(stage, len(jobs), len(jobs) - len(wanted))
        return wanted


def _tell_packs(progress: Progress, snapshot: Snapshot, names: Mapping[str, str]) -> None:
    """Turn the queue's snapshot into packs done, counting the steps of those that are running."""
    in_part = sum(run.step / max(run.steps, 1) for run in snapshot.running)
    progress.update(snapshot.done + in_part, snapshot.total, [names[run.pack] for run in snapshot.running])


def _listed(names: Sequence[str]) -> str:
    return names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "")


def _raise(stage: str, errors: dict[str, str], of: int, what: str) -> None:
    """Raise where a stage had errors; what it could do is committed."""
    if errors:
        name, reason = next(iter(errors.items()))
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise PituneError(f"{stage}: {len(errors)} of {of} {what} failed, the others are done: {name}: {reason}{more}")
