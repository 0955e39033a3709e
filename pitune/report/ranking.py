"""The tables on prediction: how well each similarity ranks the sources, and which sources are near everyone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pitune.report.contents import split_slice
from pitune.report.numbers import ends
from pitune.report.prediction import (
    MEASURES,
    RANDOM,
    Estimate,
    Judgement,
    Row,
    occurrence,
    similarities,
    skewness,
)

NEAREST = 3
"""So many neighbours are counted where it is asked which sources are near everyone."""
PARTS = {
    "empirical": "Fisher, empirical",
    "true": "Fisher, true",
    "weights": "experts' weights",
    "features": "mean features",
    "labels": "label texts",
}
WAYS = {"cosine_per_tensor": "cosine per tensor", "cosine": "cosine", "task2vec": "Task2Vec", "csls": "CSLS"}


@dataclass(frozen=True)
class Ranking:
    """A similarity in the table on prediction.

    Attributes:
        title: what people read.
        note: its column in ``graph.parquet``, or how it is reckoned.
        used: whether the study's neighbours come from it.
        cells: by measure, its mean, its interval (empty where there is none), and whether it is clearly ahead of a
            random ranking.
        hubs: the skewness of how often it has each source among a few-shot target's nearest.
    """

    title: str
    note: str
    used: bool
    cells: list[tuple[str, str, bool]]
    hubs: str


def rankings(judgements: Sequence[Judgement], graph: Sequence[Row]) -> list[Ranking]:
    """Return a row for each similarity, in the graph's order, and the random ranking's last."""
    used, few = in_use(graph), few_shot(graph)
    return [
        Ranking(
            similarity_title(one.similarity),
            "the exact mean over all rankings" if one.similarity == RANDOM else one.similarity,
            one.similarity == used,
            [_cell(one, measure) for measure in MEASURES],
            "–" if one.similarity == RANDOM else _hubs(few, one.similarity),
        )
        for one in judgements
    ]


def _cell(found: Judgement, measure: str) -> tuple[str, str, bool]:
    value = found.values.get(measure)
    if value is None:
        return "–", "", False
    low = found.ahead[measure].low
    return _number(value.mean, measure), _interval(value, measure), low is not None and low > 0


def _hubs(graph: Sequence[Row], by: str) -> str:
    return f"{skewness(occurrence(graph, NEAREST, by)):.1f}".replace("-", "−")


def _number(value: float, measure: str) -> str:
    text = f"{100 * value:.1f}" if measure.startswith("regret") else f"{value:.2f}"
    return text.replace("-", "−")


def _interval(value: Estimate, measure: str) -> str:
    if value.low is None or value.high is None or value.high - value.low < 1e-12:
        return ""
    if measure.startswith("regret"):
        return ends(value.low, value.high)
    return f"{_number(value.low, measure)} to {_number(value.high, measure)}"


def few_shot(graph: Sequence[Row]) -> list[Row]:
    """Return a graph's rows of few-shot targets, which is what neighbours are for; all where there are none."""
    return [row for row in graph if split_slice(row["target"])[1] != "full"] or list(graph)


def in_use(graph: Sequence[Row]) -> str:
    """Return the column that the study's neighbours come from: the one that ``similarity`` repeats."""
    for name in similarities(graph):
        if all(abs(row[name] - row["similarity"]) < 1e-9 for row in graph):
            return name
    return ""


def similarity_title(name: str) -> str:
    """Return how a similarity is called before people: ``Fisher, empirical: cosine per tensor``."""
    part, _, way = name.partition("_")
    if name in (RANDOM, "similarity"):
        return "a random ranking" if name == RANDOM else "the study's similarity"
    return f"{PARTS[part]}: {WAYS.get(way, way)}" if part in PARTS else name
