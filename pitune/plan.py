"""What a study consists of: every artifact, what it is made from, and whether it is there already."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pitune.config import StudyConfig
from pitune.embedding.embed import EmbeddingJob
from pitune.embedding.graph import Edge
from pitune.embedding.graph import neighbours as nearest
from pitune.interpolation.jobs import AverageJob, Neighbour, TuningJob
from pitune.interpolation.scoring import ScoringJob
from pitune.materials import Materials
from pitune.store import Job, Store, fingerprint_of
from pitune.tasks.task import Slice
from pitune.training.pack import ExpertJob

METHODS = ("zero_shot", "single", "uniform", "nearest", "pi", "full")
GRAPH = "graph.parquet"
RESULTS = "results.parquet"
REPORT = "report.html"
State = Literal["done", "new", "changed", "waits"]


@dataclass(frozen=True)
class Item:
    """One artifact of the plan: whether it is there, and why it is to be made if it is not."""

    stage: str
    artifact: str
    state: State
    why: str
    rows: int  # through the backbone, forward and back: the rough cost


class Plan:
    """All jobs of a study, with the inputs that make up their fingerprints.

    Args:
        materials: the study; its tasks and its backbone's files are fetched when first needed.
    """

    def __init__(self, config: StudyConfig, materials: Materials) -> None:
        self.materials = materials
        self.config = config
        self.store = materials.store

    @classmethod
    def of(cls, config: StudyConfig) -> Plan:
        """Return the plan of a study.

        Raises:
            PituneError: the study's folder cannot be written.
        """
        return cls(
            config,
            Materials(
                Store(config.study),
                backbone=config.backbone,
                kind=config.expert,
                objective=config.objective,
                precision=config.training.precision,
                tasks=config.tasks,
                validation_examples=config.training.validation_examples,
                gpu=config.runtime.gpus_per_worker > 0,
            ),
        )

    # --- jobs --------------------------------------------------------------------------------------------------

    def slices(self) -> dict[str, Slice]:
        """Return every slice of the study: sources, targets and the full slices that are only ceilings."""
        slices = [*self.config.source_slices, *self.config.target_slices]
        slices += [self.ceiling(target) for target in self.config.target_slices]
        return {str(chosen): chosen for chosen in slices}

    def draw(self) -> None:
        """Draw every slice.

        Raises:
            PituneError: a slice asks for more examples than a class has.
        """
        for chosen in self.slices().values():
            self.materials.data(chosen)

    def ceiling(self, target: Slice) -> Slice:
        """Return the full slice of a target's task: the source of the same seed, else any source, else seed 0."""
        full = [source for source in self.config.source_slices if source.task == target.task and source.shots is None]
        same = [source for source in full if source.seed == target.seed]
        return (same or full or [Slice(target.task, None, 0)])[0]

    def experts(self) -> list[ExpertJob]:
        """Return the experts that start from the common start: full ones first, short texts before long ones."""
        return [self._expert(f"experts/{n}", self._expert_inputs(s, None), s) for n, s in self.slices().items()]

    def _expert(self, artifact: str, inputs: dict[str, Any], chosen: Slice, start: str | None = None) -> ExpertJob:
        recipe = self.config.training.recipe(chosen)
        return ExpertJob((artifact,), inputs, str(chosen), ((chosen, 1.0),), recipe, start, self.length(chosen))

    def embeddings(self) -> list[EmbeddingJob]:
        """Return the task embeddings of the sources and the targets."""
        chosen = dict.fromkeys((*self.config.source_slices, *self.config.target_slices))
        settings = self.config.embedding.model_dump(include={"labels", "examples"})
        return [
            EmbeddingJob(
                (f"embeddings/{s}.parquet",),
                {"makes": "embedding", "expert": self._expert_fingerprint(s), "embedding": settings},
                s,
                f"experts/{s}",
                self.config.embedding.labels,
                self.config.embedding.examples,
            )
            for s in chosen
        ]

    def graph_inputs(self) -> dict[str, Any]:
        """Return what the graph is made from."""
        return {
            "makes": "graph",
            "embeddings": {str(job.slice): job.fingerprint for job in self.embeddings()},
            "similarity": self.config.embedding.similarity,
            "sources": list(self.config.sources),
        }

    def graph_is_current(self) -> bool:
        """Say whether the graph is there, as the configuration wants it."""
        return self.store.is_current(GRAPH, fingerprint_of(self.graph_inputs()))

    def edges(self) -> list[Edge]:
        """Read the graph."""
        return [Edge(**row) for row in self.store.table(GRAPH).to_pylist()]

    def targets(self) -> list[TuningJob]:
        """Return each target with its neighbours; the graph must be current."""
        edges, most = self.edges(), max(self.config.sweep.top_k)
        found = []
        for chosen in self.config.target_slices:
            near = tuple((edge.source, edge.similarity) for edge in nearest(edges, str(chosen), most))
            inputs = {
                "makes": "interpolation",
                "neighbours": [[name, value, self._expert_fingerprint(Slice.parse(name))] for name, value in near],
                "own": self._expert_fingerprint(chosen),
                "recipe": self.config.training.recipe(chosen).model_dump(),
                "interpolation": self.config.interpolation.model_dump(),
                "sweep": self.config.sweep.model_dump(mode="json"),
            }
            artifacts = (f"interpolations/{chosen}", f"sweeps/{chosen}.parquet")
            neighbours = tuple(Neighbour(name, value, f"experts/{name}") for name, value in near)
            recipe = self.config.training.recipe(chosen)
            found.append(
                TuningJob(
                    artifacts,
                    inputs,
                    chosen,
                    neighbours,
                    f"experts/{chosen}",
                    recipe,
                    self.config.interpolation,
                    self.config.sweep,
                )
            )
        return found

    def averages(self) -> list[AverageJob]:
        """Return the targets as the plain average sees them: it depends on no learning rate."""
        found = []
        for target in self.targets():
            inputs = {
                "makes": "average",
                **{key: target.inputs[key] for key in ("neighbours", "own")},
                "top_k": list(self.config.sweep.top_k),
            }
            found.append(
                AverageJob(
                    (f"baselines/{target.slice}/uniform",),
                    inputs,
                    target.slice,
                    target.neighbours,
                    target.own,
                    self.config.sweep.top_k,
                )
            )
        return found

    def nearest(self) -> list[ExpertJob]:
        """Return the experts that start from the nearest neighbour's (SPoT, arXiv 2110.07904)."""
        jobs = []
        for target in self.targets():
            start = target.neighbours[0].slice
            inputs = self._expert_inputs(target.slice, self._expert_fingerprint(Slice.parse(start)))
            jobs.append(self._expert(f"baselines/{target.slice}/nearest", inputs, target.slice, f"experts/{start}"))
        return jobs

    def predictions(self) -> list[ScoringJob]:
        """Return what is to be scored: each target's methods, and each task's zero-shot and ceiling once."""
        wanted: list[ScoringJob] = []
        averages = {str(target.slice): target.fingerprint for target in self.averages()}
        nearest = {job.name: job.fingerprint for job in self.nearest()}
        shared: dict[tuple[str, str], list[str]] = {}
        for target in self.targets():
            name, task = str(target.slice), target.slice.task
            folder = f"predictions/{name}"
            for method, artifact, of in (
                ("single", f"experts/{name}", self._expert_fingerprint(target.slice)),
                ("uniform", f"baselines/{name}/uniform", averages[name]),
                ("nearest", f"baselines/{name}/nearest", nearest[name]),
                ("pi", f"interpolations/{name}", target.fingerprint),
            ):
                wanted.append(ScoringJob((f"{folder}/{method}.parquet",), self._scored(task, of), task, artifact))
            shared.setdefault((task, f"experts/{self.ceiling(target.slice)}"), []).append(f"{folder}/full.parquet")
            shared.setdefault((task, ""), []).append(f"{folder}/zero_shot.parquet")
        for (task, artifact), places in shared.items():
            of = self._expert_fingerprint(Slice.parse(artifact.removeprefix("experts/"))) if artifact else ""
            wanted.append(ScoringJob(tuple(places), self._scored(task, of), task, artifact or None))
        return wanted

    def results_inputs(self) -> dict[str, Any]:
        """Return what the table of results is made from."""
        return {
            "makes": "results",
            "predictions": sorted((a, one.fingerprint) for one in self.predictions() for a in one.artifacts),
        }

    # --- inputs ------------------------------------------------------------------------------------------------

    def _base(self) -> dict[str, Any]:
        encoder = self.config.backbone.model_dump(exclude={"uri"})
        return {
            "backbone": {
                "sha256": self.materials.backbone_asset.sha256,
                **encoder,
                "precision": self.config.training.precision,
            },
            "kind": self.config.expert.model_dump(mode="json"),
            "objective": self.config.objective.model_dump(mode="json"),
        }

    def _expert_inputs(self, chosen: Slice, start: str | None) -> dict[str, Any]:
        inputs = {
            "makes": "expert",
            **self._base(),
            "task": self.materials.task(chosen.task).fingerprint,
            "slice": str(chosen),
            "recipe": self.config.training.recipe(chosen).model_dump(),
            "start": start or "common",
        }
        if chosen.shots is None:
            inputs["validation_examples"] = self.config.training.validation_examples
        return inputs

    def _expert_fingerprint(self, chosen: Slice) -> str:
        return fingerprint_of(self._expert_inputs(chosen, None))

    def _scored(self, task: str, expert: str) -> dict[str, Any]:
        return {"makes": "prediction", **self._base(), "task": self.materials.task(task).fingerprint, "expert": expert}

    def length(self, chosen: Slice) -> int:
        """Return the mean cost of a task's rows, roughly."""
        examples = self.materials.task(chosen.task).splits["train"][:200]
        return sum(map(self.config.backbone.cost, examples)) // len(examples)

    # --- what is there -----------------------------------------------------------------------------------------

    def items(self) -> list[Item]:
        """Return every artifact with its state, in the order of the stages.

        Raises:
            PituneError: a task cannot be read, or a slice not be drawn.
        """
        self.draw()
        trials = math.prod(
            len(set(tried)) for tried in (self.config.sweep.top_k, self.config.sweep.temperature, self.config.sweep.own)
        )
        found: list[Item] = []
        for expert in self.experts():
            found += self._items("experts", expert, self._rows(expert.data[0][0]))
        for embedding in self.embeddings():
            found += self._items("embeddings", embedding, self._embedded(embedding.slice))
        found += self._items("graph", Job((GRAPH,), self.graph_inputs()), 0)
        if not self.graph_is_current():
            return found + self._waiting(trials)
        for expert in self.nearest():
            found += self._items("nearest", expert, self._rows(expert.data[0][0]))
        for mean in self.averages():
            found += self._items("uniform", mean, 0)
        for target in self.targets():
            found += self._items("interpolations", target, trials * self._rows(target.slice))
        for one in self.predictions():
            found += self._items("predictions", one, len(self.materials.task(one.task).splits["test"]) // 2)
        return found + self._items("results", Job((RESULTS,), self.results_inputs()), 0)

    def _rows(self, chosen: Slice) -> int:
        recipe = self.config.training.recipe(chosen)
        return recipe.steps * recipe.batch_size

    def _embedded(self, chosen: Slice) -> int:
        classes = len(self.materials.task(chosen.task).labels)
        few = classes * (chosen.shots or 0)
        return min(few or self.config.embedding.examples, self.config.embedding.examples)

    def _waiting(self, trials: int) -> list[Item]:
        """Return the items whose inputs are not known before the graph is."""
        found = []
        for chosen in self.config.target_slices:
            rows = self._rows(chosen)
            tests = len(self.materials.task(chosen.task).splits["test"]) // 2
            for stage, artifact, cost in (
                ("nearest", f"baselines/{chosen}/nearest", rows),
                ("uniform", f"baselines/{chosen}/uniform", 0),
                ("interpolations", f"interpolations/{chosen}", trials * rows),
                ("interpolations", f"sweeps/{chosen}.parquet", 0),
            ):
                found.append(Item(stage, artifact, "waits", "for the graph", cost))
            for method in METHODS:
                cost = tests if method not in ("zero_shot", "full") else 0
                found.append(
                    Item("predictions", f"predictions/{chosen}/{method}.parquet", "waits", "for the graph", cost)
                )
        order = ("nearest", "uniform", "interpolations", "predictions")
        return [
            *sorted(found, key=lambda item: order.index(item.stage)),
            Item("results", RESULTS, "waits", "for the graph", 0),
        ]

    def _items(self, stage: str, job: Job, rows: int) -> list[Item]:
        """Return a job's artifacts as items; the first one carries the cost."""
        states = [self._state(artifact, job) for artifact in job.artifacts]
        made = any(state != "done" for state, _ in states)
        return [
            Item(stage, artifact, state, why, rows if made and index == 0 else 0)
            for index, (artifact, (state, why)) in enumerate(zip(job.artifacts, states, strict=True))
        ]

    def _state(self, artifact: str, job: Job) -> tuple[State, str]:
        manifest = self.store.manifest(artifact)
        if manifest is None:
            return "new", "not there"
        if self.store.is_current(artifact, job.fingerprint):
            return "done", ""
        if manifest["fingerprint"] == job.fingerprint:
            return "new", "files are missing"
        before = manifest.get("inputs", {})
        changed = sorted(key for key in {*before, *job.inputs} if before.get(key) != _plain(job.inputs.get(key)))
        return "changed", f"{', '.join(changed) or 'layout'} changed"


JobT = TypeVar("JobT", bound=Job)


def missing(store: Store, jobs: Sequence[JobT]) -> list[JobT]:
    """Return the jobs whose artifacts are not all there and current."""
    return [job for job in jobs if not all(store.is_current(artifact, job.fingerprint) for artifact in job.artifacts)]


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON would give it back: tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(held) for key, held in value.items()}
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value
