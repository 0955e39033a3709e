"""The task graph: every slice's sources by similarity, and a target's neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from pitune.embedding.settings import Similarity
from pitune.embedding.similarity import similarity
from pitune.experts import Expert
from pitune.store import Store
from pitune.tasks.task import Slice


@dataclass(frozen=True)
class Edge:
    """How similar a source is to a target. ``rank`` 1 is the nearest; 0 marks the target's own task."""

    source: str
    target: str
    similarity: float
    rank: int


def task_graph(embeddings: Mapping[str, Expert], sources: Sequence[str], how: Similarity) -> list[Edge]:
    """Rank the sources for every embedded slice; a slice's own task gets rank 0 and is never its neighbour.

    Args:
        embeddings: the task embedding of each slice.
        sources: the slices whose experts can be neighbours.
        how: the similarity.
    """
    edges = []
    for target in sorted(embeddings):
        own = Slice.parse(target).task
        near = {
            source: similarity(embeddings[target], embeddings[source], how) for source in sources if source != target
        }
        others = sorted((s for s in near if Slice.parse(s).task != own), key=lambda source: (-near[source], source))
        for source, value in near.items():
            edges.append(Edge(source, target, value, others.index(source) + 1 if source in others else 0))
    return edges


def neighbours(edges: Sequence[Edge], target: str, k: int) -> list[Edge]:
    """Return the k nearest sources of ``target``, nearest first."""
    ranked = sorted((edge for edge in edges if edge.target == target and edge.rank > 0), key=lambda edge: edge.rank)
    return ranked[:k]


def as_rows(edges: Sequence[Edge]) -> list[dict[str, object]]:
    """Return the edges as rows of ``graph.parquet``."""
    return [asdict(edge) for edge in edges]


def read_embedding(store: Store, chosen: str) -> Expert:
    """Read a committed task embedding, in the shape of an expert."""
    found: Expert = {}
    for row in store.table(f"embeddings/{chosen}.parquet").to_pylist():
        site, key = row["parameter"].split("|")
        values = np.asarray(row["fisher"], dtype=np.float32).reshape(row["shape"])
        found.setdefault(site, {})[key] = torch.from_numpy(values)
    return found
