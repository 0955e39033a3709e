"""What the stages work with, opened once per process: the backbone, the tasks, the slices' rows, the store.

A :class:`Materials` is small and picklable until it is used; every worker opens its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from pitune.assets import Asset, fetch, located
from pitune.backbones import Backbone, BackboneSettings, Precision
from pitune.errors import PituneError
from pitune.experts import Expert, ExpertKind
from pitune.experts.checkpoint import CONFIG, WEIGHTS, from_files
from pitune.objectives import Objective, Rows
from pitune.objectives.rows import seed_of
from pitune.store import Store
from pitune.tasks.catalogue import load_task
from pitune.tasks.sources import TaskSource
from pitune.tasks.task import Example, Slice, SliceData, Task, draw

Data = tuple[tuple[Slice, float], ...]
"""What an expert is trained on: slices, each with its weight."""


class Materials:
    """A study's store, and what is opened for it.

    Args:
        store: its artifacts.
        backbone: the settings of the backbone.
        kind: of the experts.
        objective: of all tasks.
        precision: of the frozen matrices.
        tasks: each task's source; None for one of the catalogue.
        validation_examples: a full slice validates on so many at most.
        test_examples: experts are scored on so many of a task's test examples at most; None: on all.
        gpu: whether workers compute on a GPU; the driver never does.
        hashes: of the backbone and of tasks, by name, as another process of the study found them.
    """

    def __init__(
        self,
        store: Store,
        *,
        backbone: BackboneSettings,
        kind: ExpertKind,
        objective: Objective,
        precision: Precision = "fp32",
        tasks: Mapping[str, TaskSource | None],
        validation_examples: int = 256,
        test_examples: int | None = None,
        gpu: bool = False,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        self.store = store
        self.settings, self.kind, self.objective, self.precision = backbone, kind, objective, precision
        self.sources = dict(tasks)
        self.validation_examples, self.test_examples = validation_examples, test_examples
        self.gpu = gpu
        self._device = "cpu"
        self._hashes = dict(hashes or {})
        self._tasks: dict[str, Task] = {}
        self._tests: dict[str, tuple[Example, ...]] = {}
        self._data: dict[Slice, SliceData] = {}

    def __reduce__(self) -> tuple[object, ...]:
        sources = {name: source.located() if source else None for name, source in self.sources.items()}
        uris = {name: located(getattr(self.settings, name)) for name in self.settings.uris}
        backbone = self.settings.model_copy(update=uris)
        held = (self.store, backbone, self.kind, self.objective, self.precision, sources)
        return _in_worker, (*held, self.validation_examples, self.test_examples, self.gpu, self._hashes)

    @cached_property
    def key(self) -> str:
        """What tells these materials from others in one process."""
        parts = [part.model_dump(mode="json") for part in (self.settings, self.kind, self.objective)]
        sources = {name: source.model_dump() if source else None for name, source in self.sources.items()}
        return json.dumps(
            [
                self.store.root,
                self.precision,
                self.validation_examples,
                self.test_examples,
                parts,
                sources,
                self._hashes,
            ]
        )

    @cached_property
    def backbone_assets(self) -> dict[str, Asset]:
        """What the backbone is opened from, each with its content hash, by the setting that names it."""
        assets = {name: fetch(getattr(self.settings, name)) for name in self.settings.uris}
        for name, asset in assets.items():
            self._agree("backbone" if name == "uri" else f"backbone.{name}", asset.sha256)
        return assets

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen backbone; in a worker that has a GPU, on it."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return self.settings.open(self.backbone_assets["uri"].path, self.precision).to(self._device)

    @cached_property
    def start(self) -> Expert:
        """The expert that every expert of the study starts from."""
        return self.kind.start(self.backbone)

    @cached_property
    def firsts(self) -> dict[str, int]:
        """The lowest layer with an expert, by tower."""
        return self.backbone.firsts(list(self.start))

    def task(self, name: str) -> Task:
        """Return a task, read on first use."""
        if name not in self._tasks:
            task = load_task(name, self.sources[name])
            if task.modality not in self.settings.reads:
                raise PituneError(
                    f"task {name}: its examples are {task.modality}; backbone.kind {self.settings.kind} reads "
                    f"{' or '.join(self.settings.reads)}"
                )
            self._agree(f"task {name}", task.fingerprint)
            self._tasks[name] = task
        return self._tasks[name]

    def data(self, chosen: Slice) -> SliceData:
        """Return what a slice drew. A full slice validates on a fixed part of its task's validation split."""
        if chosen not in self._data:
            drawn = draw(self.task(chosen.task), chosen)
            if chosen.shots is None:
                drawn = SliceData(drawn.train, sample(drawn.validation, self.validation_examples, "validation"))
            self._data[chosen] = drawn
        return self._data[chosen]

    def test(self, name: str) -> tuple[Example, ...]:
        """Return the examples that experts of a task are scored on: its test split, or a fixed part of it."""
        if name not in self._tests:
            examples = self.task(name).splits["test"]
            most = self.test_examples or len(examples)
            self._tests[name] = sample(examples, most, "test")
        return self._tests[name]

    def rows(self, data: Data, role: str, again: bool = True) -> Rows:
        """Return the ``train`` or ``validation`` rows of slices, ready for the backbone.

        Several slices validate on as many rows as one, shared out by their weights.
        """
        parts = [(self.task(chosen.task), getattr(self.data(chosen), role), weight) for chosen, weight in data]
        if role == "validation" and len(parts) > 1:
            share = self.validation_examples / sum(weight for _, weight in data)
            parts = [(task, sample(part, max(1, round(share * w)), role), w) for task, part, w in parts]
        return Rows(self.backbone, self.objective, parts, again)

    def rows_of(self, task: str, examples: Sequence[Example], again: bool = True) -> Rows:
        """Return examples of a task as rows."""
        return Rows(self.backbone, self.objective, [(self.task(task), examples, 1.0)], again)

    def expert(self, artifact: str) -> Expert:
        """Read a committed expert."""
        return self.saved(artifact)[1]

    def saved(self, artifact: str) -> tuple[ExpertKind, Expert]:
        """Read a committed expert and its kind, which of some methods is not the study's."""
        config, weights = (self.store.read(artifact, name) for name in (CONFIG, WEIGHTS))
        return from_files(config, weights, self.store.where(artifact))

    def _agree(self, what: str, found: str) -> None:
        """Note a content hash; raise where another process of the study has found another one."""
        known = self._hashes.setdefault(what, found)
        if known != found:
            raise PituneError(
                f"{what}: has changed since the study began, or this machine has another copy "
                f"(sha256 {found[:12]}…, the study was planned with {known[:12]}…); run the study again"
            )


def _in_worker(
    store: Store,
    backbone: BackboneSettings,
    kind: ExpertKind,
    objective: Objective,
    precision: Precision,
    tasks: Mapping[str, TaskSource | None],
    validation_examples: int,
    test_examples: int | None,
    gpu: bool,
    hashes: Mapping[str, str],
) -> Materials:
    """Rebuild materials in a worker, whose working folder is another: their paths are absolute by now."""
    made = Materials(
        store,
        backbone=backbone,
        kind=kind,
        objective=objective,
        precision=precision,
        tasks=tasks,
        validation_examples=validation_examples,
        test_examples=test_examples,
        gpu=gpu,
        hashes=hashes,
    )
    made._device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
    return made


def sample(examples: tuple[Example, ...], most: int, name: str) -> tuple[Example, ...]:
    """Return at most ``most`` of ``examples``, the same ones for the same ``name``, in their order."""
    if len(examples) <= most:
        return examples
    chosen = np.random.default_rng(seed_of(name)).choice(len(examples), most, replace=False)
    return tuple(examples[index] for index in sorted(chosen))
