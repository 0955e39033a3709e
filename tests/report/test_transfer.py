"""The transfer matrix on the page, against plain loops over its rows."""

from __future__ import annotations

import itertools
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
from synthetic import SIMILARITIES, SIX, Study, tiny

from pitune.report import build_page
from pitune.report.contents import split_slice
from pitune.report.prediction import judge, occurrence, skewness
from pitune.report.ranking import few_shot, in_use, rankings
from pitune.report.similarities import read_edges
from pitune.report.transfer import Matrix, Pair, gained, matrix, read_pairs
from pitune.report.words import hubs, predicted, transferred
from pitune.store import Store, table_bytes


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Study(families=("graph", "transfer", "results")).write(Store(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def rows(store: Store) -> list[dict[str, Any]]:
    return store.table("transfer.parquet").to_pylist()


@pytest.fixture(scope="module")
def found(store: Store, rows: list[dict[str, Any]]) -> Matrix:
    made = matrix(read_pairs(rows), read_edges(store.table("graph.parquet").to_pylist()))
    assert made is not None
    return made


def test_cells_are_means_over_seeds(store: Store, rows: list[dict[str, Any]], found: Matrix) -> None:
    graph = store.table("graph.parquet").to_pylist()
    assert sorted(found.sources) == sorted(SIX)
    for (row, column), gain in np.ndenumerate(found.gains):
        source, (task, shots) = found.sources[row], found.columns[column]
        gains = [
            100 * one["gain"]
            for one in rows
            if split_slice(one["source"])[0] == source and (one["target"], one["shots"]) == (task, shots)
        ]
        near = [
            one["similarity"]
            for one in graph
            if split_slice(one["source"])[0] == source and split_slice(one["target"])[:2] == (task, shots)
        ]
        assert len(gains) == len(near) == 3
        assert gain == pytest.approx(mean(gains))
        assert found.similarities[row, column] == pytest.approx(mean(near))
        assert found.same[row, column] == (source == task)


def test_sources_that_help_alike_stand_side_by_side(found: Matrix) -> None:
    """Made-up tasks are near those of the same third of the list."""
    thirds = [SIX.index(source) % 3 for source in found.sources]
    assert sum(a != b for a, b in itertools.pairwise(thirds)) == 2
    tasks = [task for task, shots in found.columns if shots == "4"]
    assert tasks == found.sources
    assert [shots for _, shots in found.columns] == ["4", "16"] * 6


def test_targets_that_are_no_sources_have_an_order_of_their_own() -> None:
    near = {("a", "x"): 0.1, ("b", "y"): 0.1, ("c", "x"): 0.11}
    pairs = [
        Pair(source, (target, "4"), f"{target}@4#0", 0.5 + near.get((source, target), 0.0), 0.5)
        for source in "abc"
        for target in "xy"
    ]
    made = matrix(pairs, [])
    assert made is not None
    assert made.sources.index("b") != 1  # a and c, which help x, are neighbours
    assert sorted(made.columns) == [("x", "4"), ("y", "4")]
    assert not np.isfinite(made.similarities).any()
    assert matrix([], []) is None


def test_pairs_of_one_target_count_once() -> None:
    """Ten sources of one target do not make ten independent slices."""
    pairs = [Pair(f"s{n}", ("x", "4"), f"x@4#{seed}", 0.6, 0.5) for n in range(10) for seed in range(3)]
    pairs += [Pair("x", ("x", "4"), f"x@4#{seed}", 0.9, 0.5) for seed in range(3)]  # its own task
    made = gained(pairs)
    assert made is not None
    assert made.slices == 3
    assert made.mean == pytest.approx(0.1)
    assert transferred(pairs)[1] == "Of 30 pairs, 30 gain."
    assert gained(pairs[-3:]) is None


def test_pairs_that_are_not_scored_are_passed_over() -> None:
    row = {"source": "a@full#0", "target": "b", "shots": "4", "seed": 0, "slice": "b@4#0", "single": 0.5, "score": 0.6}
    none = [row | {"score": None}, row | {"single": float("nan")}]
    assert [pair.score for pair in read_pairs([row, *none])] == [0.6]


def test_the_table_on_prediction_has_what_was_judged(store: Store, rows: list[dict[str, Any]]) -> None:
    graph = store.table("graph.parquet").to_pylist()
    judgements = judge(rows, graph)
    table = rankings(judgements, graph)
    assert [row.note for row in table[:-1]] == list(SIMILARITIES)
    assert [row.used for row in table] == [True] + [False] * 9
    assert table[0].title == "Fisher, empirical: cosine per tensor"
    assert table[-1].title == "a random ranking"
    first = judgements[0].values
    assert table[0].cells[0][0] == f"{first['spearman'].mean:.2f}".replace("-", "−")
    assert table[0].cells[2][0] == f"{100 * first['regret@1'].mean:.1f}"
    assert not any(clear for _, _, clear in table[-1].cells)
    assert table[0].hubs == f"{skewness(occurrence(few_shot(graph), 3)):.1f}".replace("-", "−")
    assert table[-1].hubs == "–"
    assert table[0].cells[0][2]  # it is what the gains are made of
    page = build_page(store)
    for row in table:
        assert f">{escape(row.title).replace('&#x27;', '&#39;')}" in page
    assert predicted(judgements, graph)[0] in page


def test_a_graph_of_one_similarity_is_judged_by_it(rows: list[dict[str, Any]], store: Store) -> None:
    graph = [
        {name: row[name] for name in ("source", "target", "similarity", "rank")}
        for row in store.table("graph.parquet").to_pylist()
    ]
    assert in_use(graph) == "similarity"
    assert [row.title for row in rankings(judge(rows, graph), graph)] == ["the study's similarity", "a random ranking"]


def test_a_hub_is_named(tmp_path: Path) -> None:
    tasks = ("hub", "a", "b", "c", "d", "e")
    near = {("hub", target): 0.9 for target in tasks}
    rows = [
        {
            "source": f"{source}@full#0",
            "target": f"{target}@{shots}#0",
            "similarity": near.get((source, target), 0.1 * ((tasks.index(source) - tasks.index(target)) % 6)),
            "rank": 1,
        }
        for shots in ("4", "full")
        for target in tasks
        for source in tasks
    ]
    found = occurrence(few_shot(rows), 3)
    assert (found[0].source, found[0].near, found[0].targets) == ("hub@full#0", 5, 5)
    assert hubs(found, 3) == [
        "hub is among the 3 nearest of 5 of the 5 target slices of other tasks: 100\u00a0%, by chance 60\u00a0%."
    ]
    store = Store(tmp_path)
    store.commit("graph.parquet", {"": table_bytes(rows)}, "0")
    page = build_page(store)
    assert hubs(found, 3)[0] in page
    assert '<th scope="row">hub</th><td>5 of 5</td><td>100\u00a0%</td><td>60\u00a0%</td>' in page


def test_a_matrix_before_results_and_graph(tmp_path: Path) -> None:
    page = build_page(tiny(families=("transfer",)).write(Store(tmp_path)))
    assert "Measured gain of every pair" in page
    assert "Predicted similarity of every pair" not in page
    assert "How well each similarity ranks" not in page
