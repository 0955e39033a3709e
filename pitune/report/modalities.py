"""Across modalities: which sources of another modality are near a target, and whether they help it.

An *edge* is a source's task and a target (a task at a shot count); its gain is measured once a seed. Edges within one
modality stand beside those across, so that one can see whether crossing costs anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pitune.report.contents import Group, group_name, group_order, split_slice
from pitune.report.differences import Difference, difference
from pitune.report.prediction import Estimate, Row, estimate, judge
from pitune.report.ranking import rankings
from pitune.report.similarities import GraphEdge, graph_columns, similarity_cells
from pitune.report.transfer import Pair, gained, mean_scores

ORDER = ("text", "image", "image+text")
"""Of modalities, on a page; others come after them."""
NEAREST = 3
"""So many sources of another modality are named for each target."""
HELPS, HARMS, OPEN = "helps", "harms", "undecided"


@dataclass(frozen=True)
class Edge:
    """A source as a target sees it.

    Attributes:
        source: its task.
        modality: of the source.
        target: task and shots.
        similarity: the mean over seeds; None where the graph has none.
        gain: over the single expert, a fraction: the mean over seeds and its interval, over seeds or, where those are
            few, over test examples; None where it was not measured.
    """

    source: str
    modality: str
    target: Group
    similarity: float | None
    gain: Estimate | None

    @property
    def verdict(self) -> str:
        """Whether the interval leaves out 0, and where it lies; empty where nothing was measured."""
        if self.gain is None:
            return ""
        if self.gain.low is None or self.gain.high is None:
            return OPEN
        return HELPS if self.gain.low > 0 else HARMS if self.gain.high < 0 else OPEN


@dataclass(frozen=True)
class Near:
    """A target, the nearest source of its own modality (None: there is no other), the nearest of other modalities."""

    name: str
    modality: str
    within: Edge | None
    across: list[Edge]


@dataclass(frozen=True)
class Part:
    """Some of the measured pairs, those of the seeds counted one by one: how many, how many gain, and the mean."""

    pairs: int
    better: int
    mean: Difference


@dataclass(frozen=True)
class Crossing:
    """All that is said of pairs across modalities, beside those within.

    Attributes:
        modalities: of the tasks, in :data:`ORDER`.
        near: a row for each target.
        edges: all that cross.
        over: what their intervals are over: ``seeds``, or ``test examples``.
        within: of pairs within one modality; None where none is measured.
        across: of the others.
        apart: what the latter bring more than the former, target slice by target slice.
        blocks: the same by modality of the source and of the target; None where none is measured.
    """

    modalities: list[str]
    near: list[Near]
    edges: list[Edge]
    over: str
    within: Part | None
    across: Part | None
    apart: Difference | None
    blocks: dict[tuple[str, str], Part | None]


def ordered(modalities: Iterable[str]) -> list[str]:
    """Return modalities, each once, in the order of the page."""
    return sorted(set(modalities), key=lambda one: (ORDER.index(one) if one in ORDER else len(ORDER), one))


def crossing(
    of: Mapping[str, str],
    edges: Sequence[GraphEdge],
    pairs: Sequence[Pair],
    level: float,
    reaches: Mapping[tuple[str, Group], float],
) -> Crossing | None:
    """Return what crosses modalities; None where all tasks have one, or nothing was compared yet.

    Args:
        of: the modality of each task; pairs of tasks that it does not have are passed over.
        edges: of the graph.
        pairs: of the matrix.
        level: a gain of no more than this does not count as one.
        reaches: how far a gain's interval reaches to either side, of edges that have too few seeds to tell.
    """
    modalities = ordered(of.values())
    known = [pair for pair in pairs if pair.source in of and pair.target[0] in of and not pair.is_own]
    found = _edges(of, edges, known, reaches)
    if len(modalities) < 2 or not found:
        return None

    def part(some: list[Pair]) -> Part | None:
        mean = gained(some)
        better = sum(pair.score > pair.single + level for pair in some)
        return None if mean is None else Part(len(some), better, mean)

    kinds: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for pair in known:
        kinds[of[pair.source], of[pair.target[0]]].append(pair)
    within = [pair for pair in known if of[pair.source] == of[pair.target[0]]]
    across = [pair for pair in known if of[pair.source] != of[pair.target[0]]]
    return Crossing(
        modalities,
        _near(of, found),
        [edge for edge in found if edge.modality != of[edge.target[0]]],
        "test examples" if reaches else "seeds",
        part(within),
        part(across),
        difference(mean_scores(across), mean_scores(within)),
        {(a, b): part(kinds[a, b]) for a in modalities for b in modalities},
    )


def _edges(
    of: Mapping[str, str],
    edges: Sequence[GraphEdge],
    pairs: Sequence[Pair],
    reaches: Mapping[tuple[str, Group], float],
) -> list[Edge]:
    """Return every edge that was compared or measured, the nearest of each target first."""
    gains: dict[tuple[str, Group], list[tuple[int, float]]] = defaultdict(list)
    for pair in pairs:
        gains[pair.source, pair.target].append((split_slice(pair.slice)[2], pair.score - pair.single))
    targets = {target for _, target in gains} or set(graph_columns(list(edges), full=False))
    cells = similarity_cells(edge for edge in edges if edge.target in targets)
    near = {cell: float(np.mean(values)) for cell, values in cells.items()}
    found = [
        Edge(
            source,
            of[source],
            target,
            near.get((source, target)),
            _gain(gains[source, target], reaches.get((source, target))),
        )
        for source, target in {**near, **gains}
        if source in of and target[0] in of and source != target[0]
    ]
    return sorted(found, key=lambda edge: (group_order(edge.target), -(edge.similarity or 0.0), edge.source))


def _gain(seeds: Sequence[tuple[int, float]], reach: float | None) -> Estimate | None:
    found = estimate(seeds)
    if found is None or found.low is not None or reach is None:
        return found
    return replace(found, low=found.mean - reach, high=found.mean + reach)


def _near(of: Mapping[str, str], edges: Sequence[Edge]) -> list[Near]:
    by_target: dict[Group, list[Edge]] = defaultdict(list)
    for edge in edges:
        if edge.similarity is not None:
            by_target[edge.target].append(edge)
    rows = []
    for target, some in by_target.items():
        own = of[target[0]]
        same = [edge for edge in some if edge.modality == own]
        others = [edge for edge in some if edge.modality != own]
        rows.append(Near(group_name(target), own, same[0] if same else None, others[:NEAREST]))
    return rows


def fits(of: Mapping[str, str], measured: Iterable[Row], graph: Sequence[Row]) -> list[dict[str, Any]]:
    """Return how well each similarity ranks all sources, those of the target's modality, and those of others.

    Of each similarity its ``title``, whether it is ``used``, and ``cells``: three Spearman correlations as
    :class:`pitune.report.ranking.Ranking` has them.
    """
    known = [row for row in measured if split_slice(row["source"])[0] in of and row["target"] in of]
    same = [of[split_slice(row["source"])[0]] == of[row["target"]] for row in known]
    parts = (
        known,
        [row for row, one in zip(known, same, strict=True) if one],
        [row for row, one in zip(known, same, strict=True) if not one],
    )
    tables = [{row.note: row for row in rankings(judge(part, graph), graph)} for part in parts]
    return [
        {
            "title": row.title,
            "used": row.used,
            "cells": [table[note].cells[0] if note in table else ("–", "", False) for table in tables],
        }
        for note, row in tables[0].items()
    ]
