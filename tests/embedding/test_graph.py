"""The task graph: ranks, ties, and a task never its own neighbour."""

from __future__ import annotations

import math

import torch

from pitune.embedding.graph import Edge, as_rows, neighbours, task_graph
from pitune.experts import Expert

SOURCES = ("a@full#0", "b@full#0", "c@full#0", "d@full#0", "d@full#1")
DEGREES = {"a@full#0": 0, "b@full#0": 10, "c@full#0": 30, "d@full#0": 60, "d@full#1": 61, "a@16#0": 18, "e@4#1": 46}


def embeddings() -> dict[str, Expert]:
    """Return embeddings in a plane, so that their cosines are those of the angles between them."""
    radians = {name: math.radians(degrees) for name, degrees in DEGREES.items()}
    return {name: {"s": {"w": torch.tensor([math.cos(r), math.sin(r)])}} for name, r in radians.items()}


def test_neighbours_are_the_nearest_of_other_tasks() -> None:
    edges = task_graph(embeddings(), SOURCES, "cosine")
    found = neighbours(edges, "a@16#0", 3)
    assert [edge.source for edge in found] == ["b@full#0", "c@full#0", "d@full#0"]
    assert [edge.rank for edge in found] == [1, 2, 3]
    for edge in edges:
        assert abs(edge.similarity - math.cos(math.radians(DEGREES[edge.source] - DEGREES[edge.target]))) < 1e-6
    assert [edge.source for edge in neighbours(edges, "e@4#1", 9)] == [
        *("d@full#0", "d@full#1", "c@full#0", "b@full#0", "a@full#0")
    ]


def test_a_task_is_never_its_own_neighbour() -> None:
    edges = task_graph(embeddings(), SOURCES, "cosine")
    assert all((edge.rank == 0) == (edge.source.split("@")[0] == edge.target.split("@")[0]) for edge in edges)
    assert all(edge.source != edge.target for edge in edges)
    assert (
        Edge("d@full#1", "d@full#0", next(e.similarity for e in edges if e.rank == 0 and e.target == "d@full#0"), 0)
        in edges
    )
    assert not any(edge.source.startswith("a@") for edge in neighbours(edges, "a@16#0", 9))


def test_ties_go_by_name_whatever_the_order() -> None:
    same = dict.fromkeys(DEGREES, embeddings()["a@full#0"])
    for sources in (SOURCES, tuple(reversed(SOURCES))):
        found = neighbours(task_graph(same, sources, "cosine"), "e@4#1", 5)
        assert [edge.source for edge in found] == sorted(SOURCES)


def test_rows_for_the_table() -> None:
    edges = task_graph(embeddings(), SOURCES, "cosine")
    assert len(edges) == len(DEGREES) * len(SOURCES) - len(SOURCES)
    assert as_rows(edges)[0].keys() == {"source", "target", "similarity", "rank"}
