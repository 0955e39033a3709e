"""Was it predicted? Every similarity's ranking of the sources, held against the transfer that was measured.

Pure functions on the rows of ``transfer.parquet`` and ``graph.parquet``. What is notable:

- A source of the target's own task never counts: no method may use it.
- Of equally near sources the first by name is the nearer one, as in the graph, where it is a question of which ones are
  taken; Spearman and NDCG share ties out.
- What a random ranking would reach is no trial of luck but the exact mean over all rankings.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import ndcg_score

Row = Mapping[str, Any]

MEASURES = ("spearman", "ndcg", "regret@1", "regret@3")
"""How a ranking is judged, each on one target slice:

- ``spearman``: the rank correlation of similarity and gain, −1 to 1; of a similarity that is the same for all, 0.
- ``ndcg``: the gains, counted from the least one, discounted by 1 / log2(1 + place) and divided by what the best
  ranking has (Järvelin and Kekäläinen 2002), 0 to 1.
- ``regret@k``: the best source's score minus that of the best one among the k nearest, 0 or more: what is lost by
  trying these k only. Less is better.

On one target gains and scores differ by a constant, so that either serves.
"""
RANDOM = "random"
"""The name of what is no similarity: the exact mean over all rankings."""
EDGE = frozenset({"source", "target", "similarity", "rank"})
"""The columns of ``graph.parquet`` that are not one similarity of several."""
FEWEST_SEEDS = 3
"""Fewer have no interval."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, each of them the mean over its target slices.

    Attributes:
        mean: over seeds.
        low: the lower end of the 95 % interval over seeds (Student's t); None where there are less than three seeds.
        high: the upper end.
        seeds: the mean of each seed.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: dict[int, float]


@dataclass(frozen=True)
class Case:
    """How well one ranking fits one target slice.

    Attributes:
        target: the slice.
        seed: its seed.
        sources: how many were ranked.
        values: by measure; NaN where all sources have the same gain, which any ranking fits.
    """

    target: str
    seed: int
    sources: int
    values: dict[str, float]


@dataclass(frozen=True)
class Judgement:
    """How well a similarity predicts the transfer.

    Attributes:
        similarity: its column in ``graph.parquet``, or :data:`RANDOM`.
        cases: one for each target slice.
        values: by measure; a measure that no case has is not in it.
        ahead: by measure, how much better than a random ranking of the same sources: more is better for all of them.
    """

    similarity: str
    cases: tuple[Case, ...]
    values: dict[str, Estimate]
    ahead: dict[str, Estimate]


@dataclass(frozen=True)
class Occurrence:
    """How often a source is among the nearest.

    Attributes:
        source: the slice.
        near: how many targets have it among their nearest.
        targets: how many could: those of other tasks.
        chance: the share of them that a random ranking would give, 0 to 1.
    """

    source: str
    near: int
    targets: int
    chance: float

    @property
    def share(self) -> float:
        """The share of the targets that have it among their nearest, 0 to 1."""
        return self.near / self.targets


def judge(matrix: Iterable[Row], graph: Sequence[Row]) -> list[Judgement]:
    """Hold each similarity of the graph against the matrix.

    Args:
        matrix: rows of ``transfer.parquet``: ``source``, ``slice`` (the target slice), ``seed`` and ``score``.
        graph: rows of ``graph.parquet``; of a study that has but one similarity, its ``similarity`` is judged.

    Returns:
        A judgement of each similarity, in the order of the columns, and of a random ranking last. Empty where no target
        slice has two sources of other tasks that are in both.
    """
    names = similarities(graph)
    edges = {(row["target"], row["source"]): row for row in graph}
    found: dict[str, list[Case]] = defaultdict(list)
    for target, rows in _by_target(matrix).items():
        known = [row for row in rows if (target, row["source"]) in edges]
        if len(known) < 2:
            continue
        known.sort(key=lambda row: str(row["source"]))  # so that a stable sort breaks ties by name
        scores = np.array([row["score"] for row in known], dtype=np.float64)
        for name in names:
            near = np.array([edges[target, row["source"]][name] for row in known], dtype=np.float64)
            found[name].append(Case(target, int(rows[0]["seed"]), len(known), fit(near, scores)))
        found[RANDOM].append(Case(target, int(rows[0]["seed"]), len(known), by_chance(scores)))
    return [_judgement(name, cases, found[RANDOM]) for name, cases in found.items()]


def similarities(graph: Sequence[Row]) -> list[str]:
    """Return the columns of a graph's rows that are a similarity each; of an older graph, ``similarity``."""
    if not graph:
        return []
    return [name for name in graph[0] if name not in EDGE] or ["similarity"]


def fit(near: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return how well similarities (sources,) rank what was scored (sources,), by measure.

    Of equal similarities the earlier one is nearer for the regret.
    """
    order = np.argsort(-near, kind="stable")
    values = {f"regret@{k}": float(scores.max() - scores[order[:k]].max()) for k in (1, 3)}
    if np.ptp(scores) == 0:
        return dict.fromkeys(("spearman", "ndcg"), math.nan) | values
    rank = float(stats.spearmanr(near, scores).statistic) if np.ptp(near) > 0 else 0.0
    return {"spearman": rank, "ndcg": _ndcg(near, scores)} | values


def by_chance(scores: np.ndarray) -> dict[str, float]:
    """Return the exact mean of :func:`fit` over all rankings of what was scored (sources,), by measure."""
    values = {f"regret@{k}": _chance_regret(scores, k) for k in (1, 3)}
    if np.ptp(scores) == 0:
        return dict.fromkeys(("spearman", "ndcg"), math.nan) | values
    return {"spearman": 0.0, "ndcg": _ndcg(np.zeros(len(scores)), scores)} | values


def occurrence(graph: Iterable[Row], k: int = 3, by: str = "similarity") -> list[Occurrence]:
    """Return how often each source is among the ``k`` nearest, the most frequent first.

    Args:
        graph: rows of ``graph.parquet``; every target in them counts once.
        k: how many of a target's sources of other tasks are near.
        by: the column that ranks them; of equally near ones the first by name comes first.
    """
    near: dict[str, int] = defaultdict(int)
    chances: dict[str, list[float]] = defaultdict(list)
    targets: dict[str, list[Row]] = defaultdict(list)
    for row in graph:
        if _task(row["source"]) != _task(row["target"]):
            targets[row["target"]].append(row)
    for rows in targets.values():
        ranked = sorted(rows, key=lambda row: (-row[by], str(row["source"])))
        for place, row in enumerate(ranked):
            near[row["source"]] += place < k
            chances[row["source"]].append(min(k, len(ranked)) / len(ranked))
    found = [Occurrence(name, near[name], len(held), float(np.mean(held))) for name, held in chances.items()]
    return sorted(found, key=lambda one: (-one.share, one.source))


def skewness(found: Sequence[Occurrence]) -> float:
    """Return the skewness of how often sources are near, which hubs make large (Radovanović et al. 2010, eq. 1).

    0 where all are near equally often, or none is.
    """
    near = np.array([one.near for one in found], dtype=np.float64)
    return float(stats.skew(near)) if len(near) and np.ptp(near) > 0 else 0.0


def are_few(matrix: Iterable[Row]) -> bool:
    """Return whether the rows are of too few seeds for an interval over them."""
    return len({row["seed"] for row in matrix}) < FEWEST_SEEDS


def _by_target(matrix: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each target slice whose sources are of other tasks and whose scores are numbers."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in matrix:
        if _task(row["source"]) != _task(row["slice"]) and row["score"] is not None and math.isfinite(row["score"]):
            found[row["slice"]].append(row)
    return found


def _judgement(name: str, cases: Sequence[Case], chance: Sequence[Case]) -> Judgement:
    values: dict[str, Estimate] = {}
    ahead: dict[str, Estimate] = {}
    for measure in MEASURES:
        sign = -1.0 if measure.startswith("regret") else 1.0
        own = [(case.seed, case.values[measure]) for case in cases]
        apart = [
            (case.seed, sign * (case.values[measure] - random.values[measure]))
            for case, random in zip(cases, chance, strict=True)
        ]
        for into, pairs in ((values, own), (ahead, apart)):
            found = estimate(pairs)
            if found is not None:
                into[measure] = found
    return Judgement(name, tuple(cases), values, ahead)


def estimate(pairs: Sequence[tuple[int, float]]) -> Estimate | None:
    """Average the values of (seed, value) over the targets of each seed, then over seeds; None where none is a number.

    Every seed counts once, however many targets it has.
    """
    by_seed: dict[int, list[float]] = defaultdict(list)
    for seed, value in pairs:
        if math.isfinite(value):
            by_seed[seed].append(value)
    seeds = {seed: float(np.mean(by_seed[seed])) for seed in sorted(by_seed)}
    if not seeds:
        return None
    held = list(seeds.values())
    mean = float(np.mean(held))
    if len(held) < FEWEST_SEEDS:
        return Estimate(mean, None, None, seeds)
    error = float(stats.sem(held))
    low, high = stats.t.interval(CONFIDENCE, len(held) - 1, mean, error) if error > 0 else (mean, mean)
    return Estimate(mean, float(low), float(high), seeds)


def _ndcg(near: np.ndarray, scores: np.ndarray) -> float:
    """Return the normalised discounted cumulative gain; equally near sources share their places."""
    return float(ndcg_score([scores - scores.min()], [near]))


def _chance_regret(scores: np.ndarray, k: int) -> float:
    """Return the mean, over all choices of ``k`` of the scores (sources,), of what the best one chosen is short of."""
    count = len(scores)
    k = min(k, count)
    ways = [math.comb(place, k - 1) for place in range(count)]  # in which the score at this place is the best one
    return float(np.dot(scores.max() - np.sort(scores), ways)) / math.comb(count, k)


def _task(name: str) -> str:
    return name.rpartition("@")[0]
