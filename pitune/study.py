"""The study: its stages in order. Each makes what is missing and leaves what is there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pitune.config import StudyConfig
from pitune.embedding.embed import embed, read_embedding
from pitune.embedding.graph import as_rows, task_graph
from pitune.errors import PituneError
from pitune.interpolation.scoring import Prediction, predict
from pitune.interpolation.target import average
from pitune.materials import Materials
from pitune.plan import GRAPH, METHODS, RESULTS, Plan, missing
from pitune.report import write_report
from pitune.runtime.cluster import connect
from pitune.runtime.fanout import fan_out
from pitune.runtime.gangs import GangSettings, run_packs
from pitune.runtime.queue import Snapshot
from pitune.runtime.sweep import search
from pitune.store import Job, Store, fingerprint, table_bytes
from pitune.tasks.metrics import METRICS
from pitune.tasks.task import Slice
from pitune.training.pack import ExpertJob, ExpertTraining, make_packs

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
        self.store = Store(config.study)
        self.materials = Materials(config, self.store)
        self.plan = Plan(self.materials)

    def run(self, progress: Progress, address: str | None = None) -> None:
        """Make everything that is missing, on a local Ray or on the cluster at ``address``.

        Raises:
            PituneError: another process works on the study; or something failed, the rest of its stage being done.
        """
        with self.store.lock():
            self._open()
            self.store.write("study.yaml", self.config.yaml().encode())
            self._write_slices()
            if missing(self.store, self.plan.experts()) or not self._is_scored():
                with connect(address):
                    self._stages(progress)
            self._write_results()
            write_report(self.store)

    def _open(self) -> None:
        """Draw every slice and open the backbone: what is wrong with one is told before anything is written."""
        self.plan.draw()
        _ = self.materials.start

    def _stages(self, progress: Progress) -> None:
        self._train(self.plan.experts(), "experts", progress)
        self._embed(progress)
        self._make_graph()
        self._train(self.plan.nearest(), "nearest", progress)
        self._average(progress)
        self._interpolate(progress)
        self._predict(progress)

    def _is_scored(self) -> bool:
        return self.plan.graph_is_current() and not missing(self.store, self.plan.predictions())

    # --- stages ------------------------------------------------------------------------------------------------

    def _train(self, jobs: Sequence[ExpertJob], stage: str, progress: Progress) -> None:
        """Train the missing experts, in packs, by gangs."""
        wanted = self._begin(stage, jobs, progress)
        if not wanted:
            return
        packs = make_packs(wanted, self.config.training, [self.plan.length(job.slice) for job in wanted], stage)
        runtime = self.config.runtime
        with _scratch(self.store, "train") as storage:
            settings = GangSettings(
                workers=runtime.workers,
                cpus_per_worker=runtime.cpus_per_worker,
                gpus_per_worker=runtime.gpus_per_worker,
                gangs=runtime.gangs,
                storage=storage,
                name=f"{stage}-{fingerprint({'packs': [job.mark for job in wanted]})[:12]}",
            )
            work = ExpertTraining(self.materials)
            errors = run_packs(packs, work, settings, lambda snapshot: _tell_packs(progress, snapshot))
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
            self.store.commit(GRAPH, {"": table_bytes(as_rows(edges))}, fingerprint(inputs), inputs=inputs)

    def _average(self, progress: Progress) -> None:
        """Average each target's neighbours and its own expert."""
        jobs = {str(job.slice): job for job in self._begin("uniform", self.plan.averages(), progress)}
        self._fan_out("uniform", average, jobs, progress)

    def _interpolate(self, progress: Progress) -> None:
        """Search top-k, temperature and the own expert's start for each target, with Ray Tune."""
        targets = self._begin("interpolations", self.plan.targets(), progress)
        if not targets:
            return
        with _scratch(self.store, "tune") as storage:
            errors = search(targets, self.materials, self.config.runtime, storage, progress.update)
        _raise("interpolations", errors, len(targets), "targets")

    def _predict(self, progress: Progress) -> None:
        """Score every method on the whole test splits; experts of one task share a pass."""
        by_task: dict[str, list[Prediction]] = {}
        for one in self._begin("predictions", self.plan.predictions(), progress):
            by_task.setdefault(one.task, []).append(one)
        jobs = {
            f"{task} {start + 1}–{start + len(wanted[start : start + TOGETHER])}": wanted[start : start + TOGETHER]
            for task, wanted in sorted(by_task.items(), key=lambda pair: -self._test_size(pair[0]))
            for start in range(0, len(wanted), TOGETHER)
        }
        self._fan_out("predictions", predict, jobs, progress)

    def _test_size(self, task: str) -> int:
        """Return how much a task has to score: the long jobs go first."""
        return len(self.materials.task(task).splits["test"]) * self.plan.length(Slice(task, None, 0))

    def _fan_out(self, stage: str, function: Callable[..., None], jobs: Mapping[str, Any], progress: Progress) -> None:
        if jobs:
            errors = fan_out(function, self.materials, jobs, self.config.runtime, progress.update)
            _raise(stage, errors, len(jobs), "jobs")

    def _begin(self, stage: str, jobs: Sequence[Job], progress: Progress) -> list:  # type: ignore[type-arg]
        wanted = missing(self.store, jobs)
        progress.stage(stage, len(jobs), len(jobs) - len(wanted))
        return wanted

    # --- tables ------------------------------------------------------------------------------------------------

    def _write_slices(self) -> None:
        """Write down which examples each slice drew."""
        for name, chosen in self.plan.slices().items():
            inputs = {
                "makes": "slice",
                "slice": name,
                "task": self.materials.task(chosen.task).fingerprint,
                "validation_examples": self.config.training.validation_examples if chosen.shots is None else None,
            }
            artifact = f"slices/{name}.parquet"
            if not self.store.is_current(artifact, fingerprint(inputs)):
                task, data = self.materials.task(chosen.task), self.materials.data(chosen)
                rows = [
                    {"key": example.key, "role": role, "label": task.labels[example.label]}
                    for role in ("train", "validation")
                    for example in getattr(data, role)
                ]
                self.store.commit(artifact, {"": table_bytes(rows)}, fingerprint(inputs), inputs=inputs)

    def _write_results(self) -> None:
        """Gather every score into ``results.parquet``."""
        inputs = self.plan.results_inputs()
        if self.store.is_current(RESULTS, fingerprint(inputs)):
            return
        rows = [self._score(target, method) for target in self.config.target_slices for method in METHODS]
        self.store.commit(RESULTS, {"": table_bytes(rows)}, fingerprint(inputs), inputs=inputs)

    def wrong_scores(self) -> list[str]:
        """Return one line per row of ``results.parquet`` that its predictions do not bear out."""
        wrong = []
        rows = self.store.table(RESULTS).to_pylist() if self.store.manifest(RESULTS) else []
        for row in rows:
            artifact = f"predictions/{row['slice']}/{row['method']}.parquet"
            table = self.store.table(artifact).to_pydict()
            value = METRICS[row["metric"]](table["label"], table["prediction"])
            if abs(value - row["value"]) > 1e-9:
                wrong.append(f"{RESULTS}: {row['slice']} {row['method']} is {row['value']}, {artifact} gives {value}")
        return wrong

    def _score(self, target: Slice, method: str) -> dict[str, object]:
        """Return a row of ``results.parquet``; its seconds are what making the expert took."""
        prediction = self.store.manifest(f"predictions/{target}/{method}.parquet")
        if prediction is None:
            raise PituneError(
                f"{self.store.root}/predictions/{target}/{method}.parquet: is missing; run the study again"
            )
        maker = self.store.manifest(prediction["expert"]) if prediction["expert"] else None
        return {
            "method": method,
            "task": target.task,
            "shots": str(target.shots),
            "seed": target.seed,
            "slice": str(target),
            "metric": prediction["metric"],
            "value": prediction["value"],
            "examples": prediction["examples"],
            "seconds": float(maker["seconds"]) if maker else 0.0,
        }


class _scratch:
    """A folder for Ray's own files, in the study so that gangs resume; removed when its stage has gone well."""

    def __init__(self, store: Store, name: str) -> None:
        self.folder = Path(store.root).absolute() / ".ray" / name if store.is_local else Path(tempfile.mkdtemp())

    def __enter__(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        return str(self.folder)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _tell_packs(progress: Progress, snapshot: Snapshot) -> None:
    """Turn the queue's snapshot into packs done, counting the steps of those that are running."""
    in_part = sum(run.step / max(run.steps, 1) for run in snapshot.running)
    progress.update(snapshot.done + in_part, snapshot.total, [run.pack for run in snapshot.running])


def _raise(stage: str, errors: dict[str, str], of: int, what: str) -> None:
    """Raise where a stage had errors; what it could do is committed."""
    if errors:
        name, reason = next(iter(errors.items()))
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise PituneError(f"{stage}: {len(errors)} of {of} {what} failed, the others are done: {name}: {reason}{more}")
