"""The transfer matrix: what every source's expert brings every target, measured, and what was predicted of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import hierarchy

from pitune.report.contents import Group, Manifests, group_order, shots_order, split_slice
from pitune.report.differences import Difference, difference
from pitune.report.similarities import GraphEdge, grid, same_task, similarity_cells
from pitune.store import Store


@dataclass(frozen=True)
class Pair:
    """A measured pair: a source's expert, tuned on a target's shots.

    Attributes:
        source: the source's task.
        target: the target's task and shots.
        slice: the target slice.
        score: what the tuned expert scored, a fraction.
        single: what the target's single expert did.
    """

    source: str
    target: Group
    slice: str
    score: float
    single: float

    @property
    def is_own(self) -> bool:
        """Whether source and target are of one task, which no method may make use of."""
        return self.source == self.target[0]


@dataclass(frozen=True)
class Matrix:
    """Gains and similarities, sources down and targets across, those that behave alike side by side.

    Attributes:
        sources: the sources' tasks.
        columns: the targets' tasks and shots.
        gains: (sources, columns); over the single expert in points, the mean over seeds; NaN where none is measured.
        similarities: (sources, columns); of the similarity in use, the mean over seeds; NaN where there is none.
        same: (sources, columns); whether both are of one task.
    """

    sources: list[str]
    columns: list[Group]
    gains: NDArray[np.float64]
    similarities: NDArray[np.float64]
    same: NDArray[np.bool_]

    def rows(self) -> list[tuple[str, list[float | None]]]:
        """Return each source with its gains as fractions; None where none is measured."""
        gains = [[float(value) / 100 if math.isfinite(value) else None for value in row] for row in self.gains]
        return list(zip(self.sources, gains, strict=True))


def read_pairs(rows: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """Return the pairs of ``transfer.parquet`` that have been scored, and so has their target's single expert."""
    return [
        Pair(
            split_slice(row["source"])[0],
            (row["target"], str(row["shots"])),
            str(row["slice"]),
            float(row["score"]),
            float(row["single"]),
        )
        for row in rows
        if _is_number(row["score"]) and _is_number(row["single"])
    ]


def read_rows(store: Store, manifests: Manifests, artifact: str) -> list[dict[str, Any]]:
    """Return the rows of a study's table; none where it is not there yet."""
    return store.table(artifact).to_pylist() if artifact in manifests else []


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def gained(pairs: Iterable[Pair]) -> Difference | None:
    """Return what a source of another task brings on average over the single expert, paired over target slices.

    The pairs of one target slice share its single expert; they count as one, by their mean.
    """
    some = list(pairs)
    return difference(mean_scores(some), {pair.slice: pair.single for pair in some})


def mean_scores(pairs: Iterable[Pair]) -> dict[str, float]:
    """Return the mean score of each target slice over its sources of other tasks."""
    scores: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        if not pair.is_own:
            scores[pair.slice].append(pair.score)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def matrix(pairs: list[Pair], edges: list[GraphEdge]) -> Matrix | None:
    """Return the matrix of ``pairs`` beside the graph's similarities, clustered; None where there are no pairs."""
    if not pairs:
        return None
    gains: dict[tuple[str, Group], list[float]] = defaultdict(list)
    for pair in pairs:
        gains[pair.source, pair.target].append(100 * (pair.score - pair.single))
    near = similarity_cells(edges)
    sources = sorted({pair.source for pair in pairs})
    columns = sorted({pair.target for pair in pairs}, key=group_order)
    sources, columns = _clustered(sources, columns, grid(gains, sources, columns))
    same = same_task(sources, columns)
    return Matrix(sources, columns, grid(gains, sources, columns), grid(near, sources, columns), same)


def _clustered(sources: list[str], columns: list[Group], gains: NDArray[np.float64]) -> tuple[list[str], list[Group]]:
    """Order sources that help the same targets, and targets that the same sources help, side by side.

    Where the targets' tasks are the sources', both have one order, so that the own tasks stay on the diagonal. What a
    target gains from any source is no likeness: gains are taken less their column's mean, own tasks left out.
    """
    tasks = sorted({task for task, _ in columns})
    own = same_task(sources, columns)
    others = np.where(own, np.nan, gains)
    some = np.isfinite(others)
    means = np.where(some, others, 0.0).sum(0) / np.maximum(some.sum(0), 1)
    given = np.where(some, others - means, 0.0)  # (sources, columns)
    taken = np.array([given[:, [task == one for one, _ in columns]].mean(1) for task in tasks])  # (tasks, sources)
    if tasks == sources:
        sources = tasks = _leaves(sources, np.concatenate([given, taken], axis=1))
    else:
        sources, tasks = _leaves(sources, given), _leaves(tasks, taken)
    return sources, sorted(columns, key=lambda group: (tasks.index(group[0]), shots_order(group[1])))


def _leaves(names: list[str], features: NDArray[np.float64]) -> list[str]:
    """Order names by average linkage of their features (names, features), neighbours as near as may be."""
    if len(names) < 3:
        return names
    tree = hierarchy.linkage(features, "average", optimal_ordering=True)
    return [names[place] for place in hierarchy.leaves_list(tree)]
