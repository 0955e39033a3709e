"""The rows of an expert: examples of one slice, or of several with weights, and the order in which they come.

The order of an expert's rows depends on its name and its slices alone, never on the pack that it trains in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pitune.backbones.base import Backbone
from pitune.objectives.base import Answers, Objective, Row
from pitune.tasks.task import Example, Task

BUCKETS = 8
"""Batches whose rows are sorted by cost together."""


class Rows:
    """Examples, ready for a backbone and an objective.

    Args:
        backbone: who reads them.
        objective: what they are for.
        parts: each slice's task, its examples, and how often its rows come, as a share of all weights.
        again: the rows come more than once: what no expert touches of them is kept.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective,
        parts: Sequence[tuple[Task, Sequence[Example], float]],
        again: bool = True,
    ) -> None:
        self.rows: list[Row] = []
        self.sizes = [len(examples) for _, examples, _ in parts]
        self.weights = np.array([weight for _, _, weight in parts], dtype=np.float64)
        for task, examples, _ in parts:
            prepared = objective.prepare(backbone, task)
            self.rows += [
                Row(prepared, replace(encoded, again=again), objective.target(task, example))
                for encoded, example in zip(backbone.encode(examples), examples, strict=True)
            ]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Sequence[int]) -> list[Row]:
        """Return these rows."""
        return [self.rows[index] for index in chosen]

    def targets(self, chosen: Sequence[int]) -> list[Any]:
        """Return what is right for these rows."""
        return [self.rows[index].target for index in chosen]

    def by_cost(self) -> list[int]:
        """Return all rows, cheap ones first, so that batches of neighbours pad little."""
        return sorted(range(len(self)), key=lambda row: self.rows[row].encoded.cost)

    def order(self, name: str, steps: int, batch_size: int) -> np.ndarray:
        """Return which rows each step takes: (steps, batch_size), the same whenever asked.

        A slice's rows are shuffled epoch after epoch; of several slices, each row is drawn from one of them by their
        weights. Within each run of a few batches rows are sorted by cost, so that a batch pads little, and long
        batches come at the same steps for all experts of a pack.
        """
        generator = np.random.default_rng(seed_of(name))
        stream = self._stream(generator, steps * batch_size)
        costs = np.array([row.encoded.cost for row in self.rows])
        for start in range(0, len(stream), BUCKETS * batch_size):
            run = stream[start : start + BUCKETS * batch_size]
            run[:] = run[np.argsort(-costs[run], kind="stable")]
        return stream.reshape(steps, batch_size)

    def _stream(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Return ``count`` rows in the order in which they come, before sorting."""
        if len(self.sizes) == 1:
            return _shuffled(generator, self.sizes[0], count)
        which = generator.choice(len(self.sizes), count, p=self.weights / self.weights.sum())
        stream = np.zeros(count, dtype=np.int64)
        for part, first in enumerate(np.cumsum([0, *self.sizes[:-1]])):
            places = np.flatnonzero(which == part)
            stream[places] = first + _shuffled(generator, self.sizes[part], len(places))
        return stream


def seed_of(name: str) -> int:
    """Return the number that a name seeds a generator with."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _shuffled(generator: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Return ``count`` of ``size`` rows, shuffled epoch after epoch."""
    epochs = -(-count // size)
    if not epochs:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([generator.permutation(size) for _ in range(epochs)])[:count]


def right(found: Answers, groups: Sequence[Sequence[Row]]) -> Tensor:
    """Return which answers are their rows' targets: (E, rows), 1 or 0, float32."""
    pairs = zip(found.answers, groups, strict=True)
    return torch.tensor(
        [[float(a == row.target) for a, row in zip(answers, rows, strict=True)] for answers, rows in pairs]
    )
