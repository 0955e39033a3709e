"""The task graph: similarities, ranks, ties, a task never its own neighbour; damaged embeddings; size."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from plainsimilarity import plain_similarity

from pitune.embedding import graph as module
from pitune.embedding.graph import GraphJob, TaskGraph, make_graph
from pitune.embedding.similarity import SIMILARITIES
from pitune.embedding.spaces import Column
from pitune.errors import PituneError
from pitune.store import Store, table_bytes

SOURCES = ("a@full#0", "b@full#0", "c@full#0", "d@full#0", "d@full#1")
DEGREES = {"a@full#0": 0, "b@full#0": 10, "c@full#0": 30, "d@full#0": 60, "d@full#1": 61, "a@16#0": 18, "e@4#1": 46}
Embedding = dict[str, np.ndarray]


def plane() -> dict[str, Embedding]:
    """Return embeddings in a plane, so that their cosines are those of the angles between them."""
    radians = {name: math.radians(degrees) for name, degrees in DEGREES.items()}
    return {name: {"s|w": np.array([math.cos(r), math.sin(r)])} for name, r in radians.items()}


def write(store: Store, name: str, embedding: Embedding) -> None:
    rows = [
        {"parameter": parameter, "shape": list(values.shape), "fisher": values.astype(np.float32).ravel()}
        for parameter, values in embedding.items()
    ]
    store.commit(f"embeddings/{name}.parquet", {"": table_bytes(rows)}, "made up")


def make(folder: Path, embeddings: dict[str, Embedding], sources: tuple[str, ...], how: str = "cosine") -> pa.Table:
    """Write the embeddings, make the graph and return its table."""
    store = Store(folder)
    for name, embedding in embeddings.items():
        write(store, name, embedding)
    make_graph(materials(store), job(embeddings, sources, how))
    return store.table("graph.parquet")


def job(slices: Collection[str], sources: tuple[str, ...], how: str = "cosine") -> GraphJob:
    """Return the job of a graph of embeddings that are compared in one way."""
    column = Column("empirical", how)
    return GraphJob(("graph.parquet",), {"made": "up"}, tuple(slices), sources, "empirical", column, (column,))


def materials(store: Store) -> Any:
    return SimpleNamespace(store=store)


def test_neighbours_are_the_nearest_of_other_tasks(tmp_path: Path) -> None:
    table = make(tmp_path, plane(), SOURCES)
    found = TaskGraph(table).neighbours("a@16#0", 3)
    assert [source for source, _ in found] == ["b@full#0", "c@full#0", "d@full#0"]
    for row in table.to_pylist():
        angle = math.radians(DEGREES[row["source"]] - DEGREES[row["target"]])
        assert abs(row["similarity"] - math.cos(angle)) < 1e-6
    assert [source for source, _ in TaskGraph(table).neighbours("e@4#1", 9)] == [
        *("d@full#0", "d@full#1", "c@full#0", "b@full#0", "a@full#0")
    ]
    assert TaskGraph(table).neighbours("a@16#0", 0) == []


def test_a_task_is_never_its_own_neighbour(tmp_path: Path) -> None:
    table = make(tmp_path, plane(), SOURCES)
    rows = table.to_pylist()
    assert all((row["rank"] == 0) == (row["source"].split("@")[0] == row["target"].split("@")[0]) for row in rows)
    assert all(row["source"] != row["target"] for row in rows)
    assert ("d@full#1", "d@full#0", 0) in [(row["source"], row["target"], row["rank"]) for row in rows]
    assert not any(source.startswith("a@") for source, _ in TaskGraph(table).neighbours("a@16#0", 9))


def test_ties_go_by_name_whatever_the_order(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    same = {"s|w": generator.random(333), "s|v": generator.random(5)}
    for sources in (SOURCES, tuple(reversed(SOURCES))):
        table = make(tmp_path / sources[0], dict.fromkeys(DEGREES, same), sources, "cosine_per_tensor")
        assert [source for source, _ in TaskGraph(table).neighbours("e@4#1", 5)] == sorted(SOURCES)


def test_the_rows_of_the_table(tmp_path: Path) -> None:
    table = make(tmp_path, plane(), SOURCES)
    assert table.column_names == ["source", "target", "similarity", "rank", "empirical_cosine"]
    assert table["empirical_cosine"].equals(table["similarity"])
    assert table.num_rows == len(DEGREES) * len(SOURCES) - len(SOURCES)
    pairs = [(target, source) for target in sorted(DEGREES) for source in SOURCES if source != target]
    assert [(row["target"], row["source"]) for row in table.to_pylist()] == pairs
    manifest = Store(tmp_path).manifest("graph.parquet")
    assert manifest is not None
    assert manifest["inputs"] == {"made": "up"}


@pytest.mark.parametrize("how", SIMILARITIES)
def test_small_blocks_give_what_pairs_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 50 * 3)  # three embeddings at once
    generator = np.random.default_rng(1)
    embeddings = {
        f"t{number}@{shots}#0": {
            "x|A": np.exp(generator.normal(-9, 3, (6, 5))),
            "x|B": np.exp(generator.normal(-14, 3, (10, 2))),
        }
        for number in range(5)
        for shots in ("full", "4")
    }
    sources = tuple(name for name in embeddings if "full" in name)[::-1]
    for row in make(tmp_path, embeddings, sources, how).to_pylist():
        one, other = ([*map(np.float32, embeddings[row[end]].values())] for end in ("target", "source"))
        expected = plain_similarity([a.ravel() for a in one], [b.ravel() for b in other], how)
        assert row["similarity"] == pytest.approx(expected, abs=1e-9)


def test_parameters_meet_by_name(tmp_path: Path) -> None:
    one = {"s|a": np.array([1.0, 2.0, 3.0]), "s|b": np.array([4.0]), "t|a": np.array([0.5, 0.0])}
    turned = {parameter: one[parameter] for parameter in ("t|a", "s|a", "s|b")}
    table = make(tmp_path, {"a@full#0": one, "b@2#0": turned}, ("a@full#0",), "cosine_per_tensor")
    assert table["similarity"].to_pylist() == [1.0]


BROKEN = {
    "missing": (None, "embeddings/e@4#1.parquet: is not there or not finished"),
    "no parquet": (b"PAR1 and no more", "embeddings/e@4#1.parquet: is no parquet file"),
    "other columns": (table_bytes([{"parameter": "s|w", "values": [1.0]}]), "has the columns parameter (string), val"),
    "float64": (table_bytes([{"parameter": "s|w", "fisher": [1.0, 2.0]}]), "fisher (list<"),
    "twice": (
        table_bytes([{"parameter": "s|w", "fisher": np.ones(1, np.float32)}] * 2),
        "has 2 numbers in 2 rows, some twice or none",
    ),
    "not finite": (
        table_bytes([{"parameter": "s|w", "fisher": np.array([1, np.nan], np.float32)}]),
        "embeddings/e@4#1.parquet: holds numbers that are not finite",
    ),
    "other size": (
        table_bytes([{"parameter": "s|w", "fisher": np.ones(3, np.float32)}]),
        "embeddings/e@4#1.parquet: has 3 numbers for s|w, that of a@full#0 has 2",
    ),
    "other parameter": (
        table_bytes([{"parameter": "s|v", "fisher": np.ones(2, np.float32)}]),
        "embeddings/e@4#1.parquet: has 2 numbers for s|v, that of a@full#0 has 0",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_embedding_is_one_line(tmp_path: Path, case: str) -> None:
    data, said = BROKEN[case]
    store = Store(tmp_path)
    for name, embedding in plane().items():
        write(store, name, embedding)
    store.discard("embeddings/e@4#1.parquet")
    if data is not None:
        store.commit("embeddings/e@4#1.parquet", {"": data}, "made up")
    with pytest.raises(PituneError) as raised:
        make_graph(materials(store), job(DEGREES, SOURCES))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert store.manifest("graph.parquet") is None


def test_a_table_that_is_no_graph_is_one_line() -> None:
    with pytest.raises(PituneError, match="has the columns source, rank; right are source, target, similarity, rank"):
        TaskGraph(pa.table({"source": ["a"], "rank": [1]}))


def test_another_column_ranks_as_it_says_and_ties_go_by_name() -> None:
    near = {"b@full#0": 0.2, "a@full#0": 0.7, "d@full#0": 0.2, "c@full#0": 0.9}
    rows = [
        {"source": source, "target": "e@4#1", "similarity": 1 / rank, "rank": rank, "labels_cosine": near[source]}
        for rank, source in enumerate(near, 1)
    ]
    own = {"source": "e@full#0", "target": "e@4#1", "similarity": 1.0, "rank": 0, "labels_cosine": 1.0}
    graph = TaskGraph(pa.Table.from_pylist([own, *rows]))
    assert graph.neighbours("e@4#1", 9, "labels_cosine") == [
        *(("c@full#0", 0.9), ("a@full#0", 0.7)),
        *(("b@full#0", 0.2), ("d@full#0", 0.2)),
    ]
    assert graph.neighbours("e@4#1", 1, "labels_cosine") == [("c@full#0", 0.9)]
    assert [source for source, _ in graph.neighbours("e@4#1", 9)] == list(near)
    with pytest.raises(PituneError, match=r"has no column true_cosine; delete graph\.parquet"):
        graph.neighbours("e@4#1", 1, "true_cosine")


def test_an_unknown_target_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PituneError, match="knows no f@2#0"):
        TaskGraph(make(tmp_path, plane(), SOURCES)).neighbours("f@2#0", 2)


def test_ten_thousand_targets_are_asked_in_a_moment() -> None:
    targets, sources = 10_000, 100
    generator = np.random.default_rng(0)
    ranks = np.argsort(generator.random((targets, sources)), axis=1) + 1
    names = np.array([f"source{number}@full#0" for number in range(sources)])
    asked = [f"target{number}@4#0" for number in range(targets)]
    table = pa.table(
        {
            "source": np.tile(names, targets),
            "target": np.repeat(asked, sources),
            "similarity": (1 / ranks).ravel(),
            "rank": ranks.ravel(),
        }
    )
    began = time.process_time()
    graph = TaskGraph(table)
    found = [graph.neighbours(target, 5) for target in asked]
    assert time.process_time() - began < 5  # about half a second where nothing else runs
    for row in (0, 1234, targets - 1):
        order = np.argsort(ranks[row])[:5]
        assert found[row] == [(names[column], pytest.approx(1 / ranks[row, column])) for column in order]
