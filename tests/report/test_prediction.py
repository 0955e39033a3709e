"""Similarities held against a measured matrix: by hand, and against all rankings one by one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from pitune.report.prediction import (
    MEASURES,
    RANDOM,
    Judgement,
    by_chance,
    fit,
    judge,
    occurrence,
    similarities,
    skewness,
)

SOURCES = ("a", "b", "c", "d", "e")


def matrix(scores: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the rows of a matrix: a list of the sources' scores for each target slice."""
    return [
        {
            **{"source": f"{source}@full#0", "target": slice_.split("@")[0], "shots": "16", "slice": slice_},
            **{"seed": int(slice_.split("#")[1]), "score": score, "single": 0.5, "gain": score - 0.5},
        }
        for slice_, held in scores.items()
        for source, score in zip(SOURCES, held, strict=False)
    ]


def graph(near: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Return the rows of a graph: by column and target slice, the similarity of each source."""
    targets = next(iter(near.values()))
    return [
        {"source": f"{source}@full#0", "target": target, "rank": 0}
        | {column: held[target][place] for column, held in near.items()}
        for target in targets
        for place, source in enumerate(SOURCES[: len(targets[target])])
    ]


def values(found: Judgement) -> dict[str, float]:
    return {measure: estimate.mean for measure, estimate in found.values.items()}


def plain_ndcg(order: tuple[int, ...], scores: list[float]) -> float:
    """Return the NDCG of sources in an order without ties: the formula."""
    gains = [score - min(scores) for score in scores]
    best = sum(gain / math.log2(place + 2) for place, gain in enumerate(sorted(gains, reverse=True)))
    return sum(gains[source] / math.log2(place + 2) for place, source in enumerate(order)) / best


def plain_spearman(order: tuple[int, ...], scores: list[float]) -> float:
    """Return the Pearson correlation of places and ranks, equal scores sharing theirs."""
    near = np.array([-order.index(source) for source in range(len(scores))])
    ranks = np.array([np.mean([sorted(scores).index(s) + n for n in range(scores.count(s))]) for s in scores])
    return float(np.corrcoef(near, ranks)[0, 1])


# --- one target ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", [[0.5, 0.7, 0.6, 0.9, 0.8], [0.5, 0.7, 0.7, 0.7, 0.2], [0.0, 0.0, 0.0, 0.0, 1.0]])
def test_a_ranking_and_the_mean_over_all_of_them_equal_a_plain_count(scores: list[float]) -> None:
    """All 120 rankings of five sources, each by its formulas."""
    held: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for order in itertools.permutations(range(5)):
        near = np.array([-float(order.index(source)) for source in range(5)])
        expected = {
            "spearman": plain_spearman(order, scores),
            "ndcg": plain_ndcg(order, scores),
            "regret@1": max(scores) - scores[order[0]],
            "regret@3": max(scores) - max(scores[source] for source in order[:3]),
        }
        assert fit(near, np.array(scores)) == pytest.approx(expected, abs=1e-12)
        for measure, value in expected.items():
            held[measure].append(value)
    assert by_chance(np.array(scores)) == pytest.approx({m: np.mean(v) for m, v in held.items()}, abs=1e-12)


def test_equal_similarities_share_their_places() -> None:
    """Places 2 and 3 are shared, by hand: gains (3, 1, 0, 2) of 6, 4, 3 and 5."""
    found = fit(np.array([0.9, 0.5, 0.5, 0.1]), np.array([0.6, 0.4, 0.3, 0.5]))
    shared = (1 / math.log2(3) + 1 / math.log2(4)) / 2
    best = 3 + 2 / math.log2(3) + 1 / 2
    assert found["ndcg"] == pytest.approx((3 + (1 + 0) * shared + 2 / math.log2(5)) / best)
    # Ranks of similarity 4, 2.5, 2.5, 1 and of score 4, 2, 1, 3, each less its mean of 2.5.
    assert found["spearman"] == pytest.approx((1.5 * 1.5 + 0 + 0 - 1.5 * 0.5) / math.sqrt(4.5 * 5))


def test_of_equal_similarities_the_first_is_taken() -> None:
    found = fit(np.array([0.5, 0.5, 0.5, 0.5]), np.array([0.2, 0.1, 0.3, 0.9]))
    assert found["regret@1"] == pytest.approx(0.7) and found["regret@3"] == pytest.approx(0.6)
    assert found["spearman"] == 0.0
    assert found["ndcg"] == pytest.approx(by_chance(np.array([0.2, 0.1, 0.3, 0.9]))["ndcg"])


def test_equal_scores_say_nothing_of_a_ranking() -> None:
    for found in (fit(np.array([0.3, 0.2, 0.1]), np.full(3, 0.7)), by_chance(np.full(3, 0.7))):
        assert math.isnan(found["spearman"]) and math.isnan(found["ndcg"])
        assert found["regret@1"] == found["regret@3"] == 0.0


def test_fewer_sources_than_are_tried_lose_nothing() -> None:
    assert fit(np.array([0.1, 0.2]), np.array([0.9, 0.5]))["regret@3"] == 0.0
    assert by_chance(np.array([0.9, 0.5]))["regret@3"] == pytest.approx(0.0)


# --- a matrix ------------------------------------------------------------------------------------------------------


def test_each_similarity_is_judged_beside_luck() -> None:
    slices = [f"{task}@16#{seed}" for task in ("x", "y") for seed in range(3)]
    scores = {slice_: [0.5, 0.6, 0.7, 0.8, 0.9] for slice_ in slices}
    right, wrong = [1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 2.0, 1.0]
    near = {
        "similarity": dict.fromkeys(slices, wrong),
        "up_cosine": dict.fromkeys(slices, right),
        "down_cosine": dict.fromkeys(slices, wrong),
    }
    found = {one.similarity: one for one in judge(matrix(scores), graph(near))}
    assert list(found) == ["up_cosine", "down_cosine", RANDOM]
    assert values(found["up_cosine"]) == pytest.approx({"spearman": 1, "ndcg": 1, "regret@1": 0, "regret@3": 0})
    down = values(found["down_cosine"])
    assert down["spearman"] == pytest.approx(-1) and down["regret@1"] == pytest.approx(0.4)
    assert down["regret@3"] == pytest.approx(0.2)
    chance = values(found[RANDOM])
    assert chance["spearman"] == 0 and chance["regret@1"] == pytest.approx(0.2)
    # Of 10 choices of three, 6 have the best, 3 the second best, 1 the third: 0.3 / 10 + 0.2 / 10.
    assert chance["regret@3"] == pytest.approx(0.05)
    assert {m: e.mean for m, e in found["down_cosine"].ahead.items()} == pytest.approx(
        {m: (down[m] - chance[m]) * (-1 if m.startswith("regret") else 1) for m in MEASURES}
    )
    assert all(case.sources == 5 for one in found.values() for case in one.cases)
    assert [case.target for case in found[RANDOM].cases] == slices


def test_targets_count_within_their_seed_and_seeds_alike() -> None:
    """Seed 0 has two targets, seeds 1 and 2 one; regrets by hand, the interval by t with two degrees of freedom."""
    scores = {"x@16#0": [0.9, 0.5], "y@16#0": [0.5, 0.7], "x@16#1": [0.9, 0.3], "x@16#2": [0.3, 0.4]}
    (found, _) = judge(matrix(scores), graph({"similarity": {name: [1.0, 2.0] for name in scores}}))
    assert found.similarity == "similarity"
    regret = found.values["regret@1"]
    assert regret.seeds == pytest.approx({0: 0.2, 1: 0.6, 2: 0.0})
    assert regret.mean == pytest.approx(0.8 / 3)
    half = 4.302653 * np.std([0.2, 0.6, 0.0], ddof=1) / math.sqrt(3)
    assert (regret.low, regret.high) == (pytest.approx(0.8 / 3 - half), pytest.approx(0.8 / 3 + half))
    assert found.values["regret@3"].low == found.values["regret@3"].high == 0.0


def test_two_seeds_have_no_interval() -> None:
    scores = {"x@16#0": [0.9, 0.5], "x@16#1": [0.9, 0.3]}
    (found, _) = judge(matrix(scores), graph({"similarity": {name: [1.0, 2.0] for name in scores}}))
    assert found.values["spearman"].mean == pytest.approx(-1) and found.values["spearman"].low is None


def test_the_own_task_and_what_was_not_measured_do_not_count() -> None:
    scores = {"a@16#0": [0.99, 0.6, 0.7, 0.8, math.nan], "b@16#0": [0.5, 0.9], "c@16#0": [0.5, 0.6, 0.7, 0.8]}
    near = {"similarity": {"a@16#0": [9.0, 1.0, 2.0, 3.0, 9.0], "b@16#0": [1.0, 9.0]}}
    (found, _) = judge(matrix(scores), graph(near))
    (case,) = found.cases  # of b, one source is left; the graph does not know c
    assert (case.target, case.sources) == ("a@16#0", 3)
    assert case.values == pytest.approx({"spearman": 1, "ndcg": 1, "regret@1": 0, "regret@3": 0})


def test_a_target_that_all_sources_help_alike_has_no_rank_correlation() -> None:
    found, luck = judge(matrix({"x@16#0": [0.5] * 3}), graph({"similarity": {"x@16#0": [1.0, 2.0, 3.0]}}))
    assert found.values.keys() == luck.values.keys() == {"regret@1", "regret@3"}


def test_nothing_to_judge() -> None:
    rows = graph({"similarity": {"x@16#0": [1.0, 2.0]}})
    assert judge([], rows) == [] and judge(matrix({"x@16#0": [0.1, 0.2]}), []) == [] and similarities([]) == []
    assert judge(matrix({"x@16#0": [0.1]}), rows) == []


# --- hubs ----------------------------------------------------------------------------------------------------------


def test_how_often_a_source_is_near() -> None:
    """By hand: of a, b, c and d two are near; b is everywhere but for itself, ties go by name."""
    near = {
        "similarity": {
            "a@16#0": [9.0, 0.8, 0.7, 0.6],  # b, c
            "b@16#0": [0.1, 9.0, 0.3, 0.2],  # c, d
            "x@16#0": [0.5, 0.9, 0.5, 0.5],  # b, a
            "x@16#1": [0.1, 0.9, 0.2, 0.3],  # b, d
        },
        "other": {name: [4.0, 3.0, 2.0, 1.0] for name in ("a@16#0", "b@16#0", "x@16#0", "x@16#1")},
    }
    found = occurrence(graph(near), 2)
    assert [(one.source[0], one.near, one.targets) for one in found] == [
        ("b", 3, 3), ("c", 2, 4), ("d", 2, 4), ("a", 1, 3)
    ]  # fmt: skip
    assert [one.share for one in found] == pytest.approx([1, 1 / 2, 1 / 2, 1 / 3])
    # Of three sources two are near by luck, of four half.
    assert [one.chance for one in found] == pytest.approx([(2 / 3 + 0.5 + 0.5) / 3, 7 / 12, 7 / 12, 5 / 9])
    by_other = {one.source[0]: one.near for one in occurrence(graph(near), 2, "other")}
    assert by_other == {"a": 3, "b": 3, "c": 2, "d": 0}
    assert sum(one.near for one in occurrence(graph(near), 9)) == 3 + 3 + 4 + 4
    assert occurrence([]) == [] and skewness([]) == 0.0
    counts = np.array([3.0, 2, 2, 1])  # whose mean is 2, and which are as far above it as below
    assert skewness(found) == pytest.approx(float(((counts - 2) ** 3).mean())) == 0.0
    # Of 3, 3, 2 and 0, by hand: mean 2, second moment 1.5, third −1.5.
    assert skewness(occurrence(graph(near), 2, "other")) == pytest.approx(-1.5 / 1.5**1.5)
    assert skewness(occurrence(graph(near), 9)[:2]) == 0.0
