"""Which tasks are alike: the rows of the task graph, averaged over seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pitune.report.contents import Group, group_order, shots_order, split_slice

Cells = dict[tuple[str, Group], list[float]]
"""Numbers of the seeds by source and target."""


@dataclass(frozen=True)
class GraphEdge:
    """One row of ``graph.parquet``: a source as seen from one target slice."""

    source: str
    target: Group
    similarity: float


@dataclass(frozen=True)
class SimilarityTable:
    """Similarities averaged over seeds.

    Attributes:
        sources: tasks, similar ones next to each other.
        columns: targets in the order of their tasks.
        values: (sources, columns); NaN where there is none.
        same: (sources, columns); whether both are the same task.
    """

    sources: list[str]
    columns: list[Group]
    values: NDArray[np.float64]
    same: NDArray[np.bool_]


def read_edges(rows: Iterable[Mapping[str, Any]]) -> list[GraphEdge]:
    """Return the edges of ``graph.parquet``."""
    edges = []
    for row in rows:
        task, shots, _ = split_slice(row["target"])
        source = split_slice(row["source"])[0]
        edges.append(GraphEdge(source, (task, shots), float(row["similarity"])))
    return edges


def similarity(edges: list[GraphEdge], columns: list[Group], tasks: list[str]) -> SimilarityTable:
    """Average the similarities to ``columns`` over seeds; ``tasks`` are in the order of :func:`chain_order`."""
    shown = set(columns)
    cells = {cell: values for cell, values in similarity_cells(edges).items() if cell[1] in shown}
    there = {source for source, _ in cells}
    sources = [task for task in tasks if task in there]
    place = {task: i for i, task in enumerate(tasks)}
    ordered = sorted(columns, key=lambda group: (place.get(group[0], len(place)), shots_order(group[1])))
    return SimilarityTable(sources, ordered, grid(cells, sources, ordered), same_task(sources, ordered))


def similarity_cells(edges: Iterable[GraphEdge]) -> Cells:
    """Return the similarities of each source to each target, those that are numbers."""
    cells: Cells = defaultdict(list)
    for edge in edges:
        if math.isfinite(edge.similarity):
            cells[edge.source, edge.target].append(edge.similarity)
    return cells


def grid(cells: Cells, sources: list[str], columns: list[Group]) -> NDArray[np.float64]:
    """Return the means of ``cells`` (sources, columns); NaN where there is none."""
    found = [[np.mean(cells.get((source, column), [np.nan])) for column in columns] for source in sources]
    return np.array(found, dtype=np.float64).reshape(len(sources), len(columns))


def same_task(sources: list[str], columns: list[Group]) -> NDArray[np.bool_]:
    """Return whether a source and a target are of one task: (sources, columns)."""
    found = [[source == task for task, _ in columns] for source in sources]
    return np.array(found, dtype=np.bool_).reshape(len(sources), len(columns))


def graph_columns(edges: list[GraphEdge], full: bool) -> list[Group]:
    """Return the groups of target slices, few-shot or ``full``; the other kind where there is no such one."""
    groups = {edge.target for edge in edges}
    wanted = [group for group in groups if (group[1] == "full") == full]
    return sorted(wanted or groups, key=group_order)


def task_similarity(edges: list[GraphEdge]) -> dict[tuple[str, str], float]:
    """Return the similarity of each pair of tasks (in order of name), from full-data slices where there are any."""
    columns = set(graph_columns(edges, full=True))
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for edge in edges:
        if edge.target in columns and edge.source != edge.target[0] and math.isfinite(edge.similarity):
            first, second = sorted((edge.source, edge.target[0]))
            pairs[first, second].append(edge.similarity)
    return {pair: float(np.mean(values)) for pair, values in sorted(pairs.items())}


def chain_order(edges: list[GraphEdge]) -> list[str]:
    """Order tasks so that similar ones are neighbours: begin with the closest pair, go on at the nearer end."""
    pairs = task_similarity(edges)
    rest = sorted({edge.source for edge in edges} | {edge.target[0] for edge in edges})
    if not pairs:
        return rest

    def near(a: str, b: str) -> float:
        return pairs.get((min(a, b), max(a, b)), -math.inf)

    closest: tuple[str, str] = max(pairs, key=lambda pair: pairs[pair])
    chain = [*closest]
    rest = [task for task in rest if task not in chain]
    while rest:
        left = max(rest, key=lambda task: near(task, chain[0]))
        right = max(rest, key=lambda task: near(task, chain[-1]))
        if near(left, chain[0]) > near(right, chain[-1]):
            chain.insert(0, left)
            rest.remove(left)
        else:
            chain.append(right)
            rest.remove(right)
    return chain
