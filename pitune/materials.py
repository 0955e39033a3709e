"""What the stages work with, opened once per process: the backbone, the tasks, the slices' rows, the store.

A :class:`Materials` is small and picklable until it is used; every worker opens its own.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pitune.assets import Asset, fetch
from pitune.backbones.text import TextBackbone
from pitune.config import StudyConfig
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
    """

    def __init__(self, config: StudyConfig, store: Store) -> None:
        self.config = config
        self.store = store
        self._tasks: dict[str, Task] = {}
        self._data: dict[Slice, SliceData] = {}
        self._rows: dict[Any, Rows] = {}

    def __reduce__(self) -> tuple[type[Materials], tuple[StudyConfig, Store]]:
        return Materials, (self.config, self.store)

    @cached_property
    def backbone_asset(self) -> Asset:
        """The backbone's folder and content hash."""
        return fetch(self.config.backbone.uri)

    @cached_property
    def backbone(self) -> TextBackbone:
        """The frozen backbone, on this worker's GPU where it has one."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        backbone = TextBackbone(self.backbone_asset.path, self.config.backbone, self.config.training.precision)
        return backbone.to("cuda" if torch.cuda.is_available() else "cpu")

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
            self._tasks[name] = load_task(name, self.config.tasks[name])
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

    def forget_rows(self) -> None:
        """Free the rows, and the trunk outputs they keep."""
        self._rows.clear()

    def expert(self, artifact: str) -> Expert:
        """Read a committed expert."""
        config, weights = (self.store.read(artifact, name) for name in (CONFIG, WEIGHTS))
        return from_files(config, weights, f"{self.store.root}/{artifact}")[1]


def sample(examples: tuple[Example, ...], most: int, name: str) -> tuple[Example, ...]:
    """Return at most ``most`` of ``examples``, the same ones for the same ``name``, in their order."""
    if len(examples) <= most:
        return examples
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    chosen = np.random.default_rng(seed).choice(len(examples), most, replace=False)
    return tuple(examples[index] for index in sorted(chosen))
