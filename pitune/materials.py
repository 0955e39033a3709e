"""What the stages work with, opened once per process: the backbone, the tasks, the slices' rows, the store.

A :class:`Materials` is small and picklable until it is used; every worker opens its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pitune.assets import Asset, fetch, located
from pitune.backbones.text import TextBackbone
from pitune.config import StudyConfig
from pitune.errors import PituneError
from pitune.experts import Expert
from pitune.experts.checkpoint import CONFIG, WEIGHTS, from_files
from pitune.store import Store
from pitune.tasks.catalogue import load_task
from pitune.tasks.task import Example, Slice, SliceData, Task, draw
from pitune.training.examples import Rows


class Materials:
    """A study's configuration and store, and what is opened from them.

    Args:
        config: the study.
        store: its artifacts.
        hashes: of the backbone and of tasks, by name, as another process of the study found them.
    """

    def __init__(self, config: StudyConfig, store: Store, hashes: Mapping[str, str] | None = None) -> None:
        self.config = config
        self.store = store
        self._hashes = dict(hashes or {})
        self._tasks: dict[str, Task] = {}
        self._data: dict[Slice, SliceData] = {}
        self._rows: dict[Any, Rows] = {}

    def __reduce__(self) -> tuple[type[Materials], tuple[StudyConfig, Store, dict[str, str]]]:
        return Materials, (_located(self.config), self.store, self._hashes)

    @property
    def key(self) -> str:
        """What tells these materials from others in one process."""
        return json.dumps([self.store.root, self.config.model_dump(mode="json"), self._hashes])

    @cached_property
    def backbone_asset(self) -> Asset:
        """The backbone's folder and content hash."""
        asset = fetch(self.config.backbone.uri)
        self._agree("backbone", asset.sha256)
        return asset

    @cached_property
    def backbone(self) -> TextBackbone:
        """The frozen backbone, on a GPU where workers have one each."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        backbone = TextBackbone(self.backbone_asset.path, self.config.backbone, self.config.training.precision)
        return backbone.to("cuda" if self.config.runtime.gpus_per_worker and torch.cuda.is_available() else "cpu")

    @cached_property
    def first(self) -> int:
        """The lowest layer that has experts."""
        return self.config.expert.first_layer(self.backbone.depth)

    @cached_property
    def start(self) -> Expert:
        """The expert that every expert of the study starts from."""
        return self.config.expert.start(self.backbone)

    def task(self, name: str) -> Task:
        """Return a task, read on first use."""
        if name not in self._tasks:
            task = load_task(name, self.config.tasks[name])
            self._agree(f"task {name}", task.fingerprint)
            self._tasks[name] = task
        return self._tasks[name]

    def data(self, chosen: Slice) -> SliceData:
        """Return what a slice drew. A full slice validates on a fixed part of its task's validation split."""
        if chosen not in self._data:
            drawn = draw(self.task(chosen.task), chosen)
            if chosen.shots is None:
                drawn = SliceData(
                    drawn.train, sample(drawn.validation, self.config.training.validation_examples, "validation")
                )
            self._data[chosen] = drawn
        return self._data[chosen]

    def rows(self, chosen: Slice, role: str, keep: bool = True) -> Rows:
        """Return the ``train`` or ``validation`` rows of a slice, ready for the backbone; kept for the next call."""
        key = (chosen, role, keep)
        if key not in self._rows:
            self._rows[key] = Rows(
                self.backbone, self.task(chosen.task), getattr(self.data(chosen), role), self.first, keep
            )
        return self._rows[key]

    def embedded_rows(self, chosen: Slice) -> Rows:
        """Return the training rows that a slice's Fisher information is taken over."""
        examples = sample(self.data(chosen).train, self.config.embedding.examples, f"fisher {chosen}")
        return Rows(self.backbone, self.task(chosen.task), examples, self.first, keep=False)

    def forget_rows(self, but: str | None = None) -> None:
        """Free the rows, and the trunk outputs they keep, of all tasks but one."""
        self._rows = {key: rows for key, rows in self._rows.items() if key[0].task == but}

    def expert(self, artifact: str) -> Expert:
        """Read a committed expert."""
        config, weights = (self.store.read(artifact, name) for name in (CONFIG, WEIGHTS))
        return from_files(config, weights, f"{self.store.root}/{artifact}")[1]

    def _agree(self, what: str, found: str) -> None:
        """Note a content hash; raise where another process of the study has found another one."""
        known = self._hashes.setdefault(what, found)
        if known != found:
            raise PituneError(
                f"{what}: has changed since the study began, or this machine has another copy "
                f"(sha256 {found[:12]}…, the study was planned with {known[:12]}…); run the study again"
            )


def _located(config: StudyConfig) -> StudyConfig:
    """Return ``config`` for a worker, whose working folder is another: with absolute paths."""
    backbone = config.backbone.model_copy(update={"uri": located(config.backbone.uri)})
    return config.model_copy(
        update={
            "backbone": backbone,
            "tasks": {name: source.located() if source else None for name, source in config.tasks.items()},
        }
    )


def sample(examples: tuple[Example, ...], most: int, name: str) -> tuple[Example, ...]:
    """Return at most ``most`` of ``examples``, the same ones for the same ``name``, in their order."""
    if len(examples) <= most:
        return examples
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    chosen = np.random.default_rng(seed).choice(len(examples), most, replace=False)
    return tuple(examples[index] for index in sorted(chosen))
